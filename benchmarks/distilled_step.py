"""Cost of distillation per step for each task, and step rate after the switch.

A distilled step is compared with a baseline step plus the teacher's forward pass alone (eval mode, inference mode, the
inputs of the task: a detector skips its detections, a two-stage detector takes the student's proposals). The difference
is the cost of losses and bookkeeping. After the switch a step should cost as much as without a teacher, and a baseline
step as much as in a bare loop. All variants are measured in the same rounds, on premade batches, with weight averaging,
gradient clipping and one log row per block.

    python benchmarks/distilled_step.py [--task classification] [--teacher T] [--student S] [--device cuda] [--json]
"""

from timing import workloads
from timing.training import report_distilled_step, set_up_process, step_parser, train_values

MODELS = {
    "classification": ("small_cnn_weak", "small_cnn_strong"),
    "detection": ("retinanet_resnet18", "retinanet_resnet34"),
    "diffusion": ("unet_mini_nc16_rb1", "unet_mini_nc32_rb2"),
}
SIZES_PX = {"classification": 32, "detection": 320, "diffusion": 16}
BATCH_SIZES = {"classification": 64, "detection": 2, "diffusion": 16}
TARGETS = {"classification": "1.03", "detection": "1.10", "diffusion": "1.05"}


def main() -> None:
    parser = step_parser(__doc__, rounds=48, batch_size=0, steps=2)
    parser.add_argument("--task", default="classification", choices=MODELS)
    parser.add_argument("--teacher", help="name of the teacher's model")
    parser.add_argument("--student", help="name of the student's model")
    parser.add_argument("--size", type=int, help="side of the images in px")
    options = parser.parse_args()
    set_up_process(options)
    teacher, student = MODELS[options.task]
    options.batch_size = options.batch_size or BATCH_SIZES[options.task]
    train = train_values(options)
    if options.task == "diffusion":
        train["optimizer"] = {"name": "adamw", "lr": 1e-4}
    workload = getattr(workloads, options.task)(
        (options.teacher or teacher, options.student or student),
        train,
        options.device,
        size_px=options.size or SIZES_PX[options.task],
    )
    report_distilled_step(options, workload, target=TARGETS[options.task], builds=3)


if __name__ == "__main__":
    main()
