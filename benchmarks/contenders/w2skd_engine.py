"""w2skd: the engine with its classification task, a frozen teacher, and its own feed."""

from collections.abc import Iterator
from itertools import count

from torch import Tensor, arange

from contenders.setting import MEAN, MOMENTUM, NESTEROV, STD, WEIGHT_DECAY, Setting
from w2skd.data.batch import LabelledImages
from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher
from w2skd.platform.device import open_device
from w2skd.platform.ranks import Ranks
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import StepRow
from w2skd.tasks.catalog import recipe_types
from w2skd.training.compiled import Compiled
from w2skd.training.engine import Distillation, Engine
from w2skd.training.process import Process

NEVER = 10**9
UNUSED = "small_cnn_weak"
"""A recipe must name models, but the setting builds them."""


class W2skdEngine:
    """See `contenders.setting.Contender`."""

    def __init__(self, setting: Setting):
        device = open_device(str(setting.torch_device), Ranks())  # sets up the allocator, as in every run
        self.student = setting.build("student")
        recipe = _recipe(setting)
        task = recipe.task_type()(recipe, train=recipe.train, seed=0, device=device, ranks=Ranks())
        if setting.data is None:
            premade = setting.premade()
            task.train_batches = lambda first_step: _endless(premade, first_step)
        process = Process(device)
        model = setting.build("teacher")
        compiled = Compiled(model, True, "teacher.compile") if setting.compile else None
        teacher = FrozenTeacher(
            model, device=device, precision=setting.precision, compiled=compiled, clock=process.clock
        )
        schedule = DistillSchedule(weight=1.0, warmup_steps=0, hold_steps=NEVER, decay_steps=0)
        self._log_every = setting.log_every
        self._engine = Engine(
            task,
            self.student,
            train=recipe.train,
            seed=0,
            process=process,
            distillation=Distillation(teacher, schedule),
        )
        self._rows = self._engine.train()

    def run(self, steps: int) -> None:
        assert steps % self._log_every == 0, f"{steps} steps, but a log row every {self._log_every}"
        for _ in range(steps // self._log_every):
            while not isinstance(next(self._rows), StepRow):
                pass


def _endless(batches: list[tuple[Tensor, Tensor]], first_step: int) -> Iterator[LabelledImages]:
    wrapped = [LabelledImages(images, labels, arange(len(labels)), 0) for images, labels in batches]
    for step in count(first_step):
        yield wrapped[step % len(wrapped)]


def _recipe(setting: Setting) -> Recipe:
    files = {"source": "image_folder", "root": setting.data, "image_size": setting.size_px, "feed": setting.feed}
    normalization = {"mean": MEAN, "std": STD}
    shapes = {"source": "shapes", "train_examples": setting.batch_size, "eval_examples": setting.classes}
    sgd = {"lr": setting.lr, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": NESTEROV}
    data = {**files, "workers": setting.workers, "normalization": normalization} if setting.data else shapes
    values = {
        "name": "benchmark",
        "task": "classification",
        "data": {**data, "augment": ["crop", "flip"]},
        "teacher": {"model": UNUSED},
        "student": {"model": UNUSED},
        "train": {
            "steps": NEVER,
            "batch_size": setting.batch_size,
            "optimizer": {"name": "sgd", **sgd},
            "lr_schedule": {"name": "constant"},
            "precision": setting.precision,
            "compile": setting.compile,
            "validate_every": f"{NEVER}step",
            "log_every": setting.log_every,
        },
        "distill": {"temperature": setting.temperature},
    }
    return validate_recipe(values, "benchmark", recipe_types())
