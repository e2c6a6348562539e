"""Problems of a recipe, one line each: path, problem, nearest valid key."""

from pathlib import Path

import pytest
import yaml
from recipe_problems import Write, problems

WRITE_DURATIONS = "write epochs as 5ep, steps as 2000step, a share as 0.25run"
EITHER = "train: set either epochs or steps"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("trian={}", "trian: unknown key (did you mean 'train'?)"),
        ("data.sorce=cifar10", "data.sorce: unknown key (did you mean 'source'?)"),
        ("train.epoch=3", "train.epoch: unknown key (did you mean 'epochs'?)"),
        ("train.train=3", "train.train: unknown key"),
        ("train.optimizer.momentun=0.9", "train.optimizer.momentun: unknown key (did you mean 'momentum'?)"),
        ("train.optimizer.betas=[0.9, 0.99]", "train.optimizer.betas: unknown key"),
        ("train.lr_schedule.warmups=1ep", "train.lr_schedule.warmups: unknown key (did you mean 'warmup'?)"),
        ("distill.switch.patienc=1", "distill.switch.patienc: unknown key (did you mean 'patience'?)"),
        ("teacher.modle=x", "teacher.modle: unknown key (did you mean 'model'?)"),
        ("loss.label_smothing=0.1", "loss.label_smothing: unknown key (did you mean 'label_smoothing'?)"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one_of_its_section(
    recipe_file: Write, override: str, problem: str
) -> None:
    assert problems(recipe_file, override) == [problem]


@pytest.mark.parametrize("key", ["name", "data", "teacher", "student", "train", "task"])
def test_a_missing_section_is_named(recipe_file: Write, key: str) -> None:
    values = yaml.safe_load(Path(recipe_file()).read_text())
    del values[key]
    (problem,) = problems(recipe_file, content=yaml.safe_dump(values))
    assert problem.startswith(f"{key}: missing")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.batch_size='8'", "train.batch_size: should be a valid integer, not '8'"),
        ("train.batch_size=8.0", "train.batch_size: should be a valid integer, not 8.0"),
        ("train.batch_size=010", "train.batch_size: should be a valid integer, not '010'"),
        ("train.batch_size=true", "train.batch_size: should be a valid integer, not True"),
        ("train.optimizer.lr='0.1'", "train.optimizer.lr: should be a valid number, not '0.1'"),
        ("train.optimizer.lr=fast", "train.optimizer.lr: should be a valid number, not 'fast'"),
        ("data.download=on", "data.download: should be a valid boolean, not 'on'"),
        ("data.download=no", "data.download: should be a valid boolean, not 'no'"),
        ("train.deterministic=yes", "train.deterministic: should be a valid boolean, not 'yes'"),
        ("train.deterministic=1", "train.deterministic: should be a valid boolean, not 1"),
        ("name=1e3", "name: should be a valid string, not 1000.0"),
        ("train=fast", "train: should be a section with keys of its own, not 'fast'"),
        ("train.optimizer=sgd", "train.optimizer: should be a section with keys of its own, not 'sgd'"),
        ("teacher=null", "teacher: should be a section with keys of its own, not None"),
        ("teacher.train=5", "teacher.train: should be a section with keys of its own, not 5"),
        ("data.augment=crop", "data.augment: should be a list, not 'crop'"),
        ("report.thresholds=0.5", "report.thresholds: should be a list, not 0.5"),
        ("train.validate_every=5", f"train.validate_every: 5 is not a duration: {WRITE_DURATIONS}"),
    ],
)
def test_a_wrong_type_is_refused(recipe_file: Write, override: str, problem: str) -> None:
    assert problems(recipe_file, override) == [problem]


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("seed=-1", "seed: should be greater than or equal to 0"),
        ("train.epochs=0", "train.epochs: should be greater than 0"),
        ("train.batch_size=0", "train.batch_size: should be greater than 0"),
        ("train.optimizer.lr=-0.1", "train.optimizer.lr: should be greater than 0"),
        ("train.optimizer.lr=.inf", "train.optimizer.lr: should be a finite number"),
        ("train.optimizer.lr=.nan", "train.optimizer.lr: should be a finite number"),
        ("train.optimizer.lr=1e400", "train.optimizer.lr: should be a finite number"),
        ("train.optimizer.momentum=1.0", "train.optimizer.momentum: should be less than 1"),
        ("train.ema.decay=1.0", "train.ema.decay: should be less than 1"),
        ("train.precision=fp8", "train.precision: should be 'fp32', 'tf32', 'bf16' or 'fp16', not 'fp8'"),
        ("distill.weight=-1", "distill.weight: should be greater than or equal to 0"),
        ("distill.temperature=0", "distill.temperature: should be greater than 0"),
        ("distill.switch.patience=0", "distill.switch.patience: should be greater than 0"),
        ("distill.hold=1.5run", "distill.hold: '1.5run': a share of the run is at most 1run"),
        ("loss.label_smoothing=1.5", "loss.label_smoothing: should be less than or equal to 1"),
        ("data.validation_share=1.0", "data.validation_share: should be less than 1"),
        (
            "data.augment=[crop, flop]",
            "data.augment.1: should be 'random_resized_crop', 'crop', 'flip', 'alternating_flip', 'trivial_augment', "
            "'cutout' or 'random_erasing', not 'flop'",
        ),
        ("name=a/b", "name: should be letters, digits"),
        ("name=../up", "name: should be letters, digits"),
        ("name=''", "name: should be letters, digits"),
    ],
)
def test_a_value_out_of_range_is_refused(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems(recipe_file, override)
    assert problem.startswith(start)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train={batch_size: 8, optimizer: {name: sgd, lr: 1}, lr_schedule: {name: constant}}", EITHER),
        (
            "train={epochs: 1, steps: 2, batch_size: 8, optimizer: {name: sgd, lr: 1}, lr_schedule: {name: constant}}",
            EITHER,
        ),
        ("train.epochs=null", EITHER),
        ("train.accumulate=3", "train: accumulate: 3 does not divide batch_size: 8"),
        ("train.optimizer.momentum=0", "train.optimizer: nesterov: true requires a momentum above 0"),
        ("train.validate_every=0ep", "train: validate_every: 0ep is not a valid interval; use at least 1step"),
        ("train.checkpoint_every=0step", "train: checkpoint_every: 0step is not a valid interval; use at least 1step"),
        (
            "data.source=image_folder",
            "data: source: image_folder needs image_size, the side in px of its resized images",
        ),
        (
            "data={source: cifar10, feed: resident, augment: [trivial_augment]}",
            "data: feed: resident cannot do trivial_augment: streaming can",
        ),
        ("data.augment=[crop, random_resized_crop]", "data: augment: crop and random_resized_crop exclude each other"),
        ("train.compile=max-autotune", "train.compile: should be true, false or 'reduce-overhead', not 'max-autotune'"),
        ("teacher.compile=1", "teacher.compile: should be true, false or 'reduce-overhead', not 1"),
        ("data.augment=[flip, alternating_flip]", "data: augment: flip and alternating_flip exclude each other"),
        (
            "data={source: shapes, augment: [flip], crop_px: 2}",
            "data: crop_px: 2 has no effect without crop in augment",
        ),
        (
            "data={source: cifar10, augment: [crop], crop_px: 15}",
            "data: crop_px: 15 is more than half the side of images of 28 px",
        ),
        (
            "data={source: cifar10, image_size: 32, augment: [crop], crop_px: 9, progressive: {from_px: 16}}",
            "data: crop_px: 9 is more than half the side of images of 16 px",
        ),
        ("data.crop_scale=[0.5, 0.25]", "data: crop_scale: 0.5 is larger than 0.25"),
        (
            "data={source: cifar10, image_size: 32, eval_resize: 24}",
            "data: eval_resize: 24 is smaller than image_size: 32",
        ),
        (
            "data={source: shapes, image_size: 32, progressive: {from_px: 32}}",
            "data: progressive: from_px: 32 is not smaller than image_size: 32",
        ),
        (
            "data={source: image_folder, image_size: 32, decode: reduced, feed: resident}",
            "data: feed: resident cannot do decode: reduced: streaming can",
        ),
        ("data.decode=reduced", "data: decode: reduced is for source: image_folder, not for shapes"),
        (
            "data={source: image_folder, image_size: 32, decode: nvjpeg, augment: [random_resized_crop, flip, cutout]}",
            "data: decode: nvjpeg supports random_resized_crop and flip, not augment: cutout; set decode: full or "
            "reduced",
        ),
        ("data.download=true", "data: download: true is for cifar10, cifar100, fashion_mnist, not for shapes"),
        ("data.augment=[flip, flip]", "data: augment: each kind once"),
        ("report.thresholds=[90]", "report: thresholds: 90 is out of range; top1 lies between 0 and 1"),
    ],
)
def test_a_contradiction_is_refused(recipe_file: Write, override: str, problem: str) -> None:
    assert problems(recipe_file, override) == [problem]


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("task=clasification", "task: unknown task 'clasification' (did you mean 'classification'?); known: "),
        ("task=[classification]", "task: unknown task ['classification']; known: "),
        ("task=null", "task: unknown task None; known: "),
        ("student.model=cifar_resnet57", "student.model: unknown model 'cifar_resnet57' (did you mean 'cifar_resnet5"),
        ("teacher.model=torchvision:R50", "teacher.model: unknown model 'torchvision:R50'"),
        ("report.metric=topl", "report.metric: unknown metric 'topl' (did you mean 'top"),
        (
            "data.source=cifar",
            "data.source: should be 'cifar10', 'cifar100', 'fashion_mnist', 'image_folder', 'packed' or 'shapes', not "
            "'cifar'",
        ),
        ("train.optimizer={lr: 1}", "train.optimizer.name: missing"),
        ("train.optimizer.name=adam", "train.optimizer.name: should be one of 'sgd', 'adamw', not 'adam'"),
        ("train.lr_schedule.name=step", "train.lr_schedule.name: should be one of 'cosine', 'one_cycle'"),
    ],
)
def test_an_unknown_word_is_refused_with_the_known_ones(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems(recipe_file, override)
    assert problem.startswith(start)


def test_all_problems_are_reported_together(recipe_file: Write) -> None:
    overrides = [
        "name=a/b",
        "data.sorce=shapes",
        "data.image_size=4",
        "train.optimizer.lrr=1",
        "train.optimizer.lr=-1",
        "teacher.model=cifar_resnet21",
        "distill.hold=many",
        "report.thresholds=[teacher, half, 0.9]",
    ]
    assert sorted(problem.split(": ")[0] for problem in problems(recipe_file, *overrides)) == [
        "data.image_size",
        "data.sorce",
        "distill.hold",
        "name",
        "report.thresholds.1",
        "teacher.model",
        "train.optimizer.lr",
        "train.optimizer.lrr",
    ]


def test_a_long_value_is_cut(recipe_file: Write) -> None:
    (problem,) = problems(recipe_file, f"train.precision={'x' * 500}")
    assert len(problem) < 130


@pytest.mark.parametrize(
    ("teacher_train", "expected"),
    [
        ("{epoch: 3}", ["teacher.train.epoch: unknown key (did you mean 'epochs'?)"]),
        ("{batch_size: '8'}", ["teacher.train.batch_size: should be a valid integer, not '8'"]),
        ("{accumulate: 3}", ["teacher.train: accumulate: 3 does not divide batch_size: 8"]),
        ("{epochs: 3, steps: 4}", ["teacher.train: set either epochs or steps"]),
        ("{optimizer: {momentum: 2}}", ["teacher.train.optimizer.momentum: should be less than 1, not 2"]),
        ("{optimizer: {name: adamw}}", ["teacher.train.optimizer.lr: missing"]),
        ("{optimizer: {name: adamw, lr: 0.1, nesterov: true}}", ["teacher.train.optimizer.nesterov: unknown key"]),
        ("{optimizer: null}", ["teacher.train.optimizer: should be a section with keys of its own, not None"]),
        (
            "{epoch: 3, log_every: 0}",
            [
                "teacher.train.epoch: unknown key (did you mean 'epochs'?)",
                "teacher.train.log_every: should be greater than 0, not 0",
            ],
        ),
    ],
)
def test_problems_of_the_teachers_training_have_its_path(
    recipe_file: Write, teacher_train: str, expected: list[str]
) -> None:
    assert sorted(problems(recipe_file, f"teacher.train={teacher_train}")) == expected


def test_they_are_reported_together_with_others(recipe_file: Write) -> None:
    assert problems(recipe_file, "teacher.train={epoch: 3}", "data.sorce=x") == [
        "data.sorce: unknown key (did you mean 'source'?)",
        "teacher.train.epoch: unknown key (did you mean 'epochs'?)",
    ]


def test_a_mistake_in_train_is_reported_once(recipe_file: Write) -> None:
    assert len(problems(recipe_file, "teacher.train={epochs: 3}", "train.epoch=3")) == 1
