"""Cost of distillation for a classifier, per step, and whether it is gone after the switch.

A distilled step is compared with a baseline step plus the teacher's forward alone (eval mode, inference mode, same
batch size). The difference is the cost of the loss and of the bookkeeping; target: at most 1.03. After the switch a
step must cost what it costs without a teacher; target: at least 0.99 of the baseline's rate. All four variants are
measured in the same rounds, on premade batches.

    python benchmarks/distilled_step.py [--teacher small_cnn_weak] [--student small_cnn_strong] [--json]
"""

from collections.abc import Callable

import torch
from timing.training import SGD, SHAPES, build_teacher, endless_recipe, premade, report_distilled_step, step_parser

BATCHES = 8


def main() -> None:
    parser = step_parser(__doc__, rounds=240, batch_size=64, steps=2)
    parser.add_argument("--teacher", default="small_cnn_weak")
    parser.add_argument("--student", default="small_cnn_strong")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {"teacher": {"model": options.teacher}, "student": {"model": options.student}}
    recipe = endless_recipe(options, SGD, task="classification", data=SHAPES, **models)

    def forward() -> Callable[[], object]:
        task = premade(recipe, BATCHES)
        model, batches = build_teacher(task), task.train_batches(0)
        return lambda: model(next(batches).images)

    report_distilled_step(options, recipe, lambda: premade(recipe, BATCHES), forward, target="1.03", builds=6)


if __name__ == "__main__":
    main()
