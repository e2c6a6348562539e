import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from w2skd.errors import RecipeError
from w2skd.recipe.load import (
    dump_recipe,
    find_recipe,
    load_recipe,
    parse_yaml,
    shipped_recipes,
    validate_recipe,
    with_overrides,
)
from w2skd.recipe.schema import AdamWSection, SgdSection

Write = Callable[..., str]


def problems(write: Write, *overrides: str, content: str | None = None) -> list[str]:
    """What is wrong with the tiny recipe after overrides, one entry a problem, without the file's name."""
    path = write() if content is None else write(content)
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides)
    first, *others = str(raised.value).removeprefix(f"recipe {path}: ").splitlines()
    if others:
        assert first == f"{len(others)} problems"
        return [problem.strip() for problem in others]
    return [first]


WRITE_DURATIONS = "write epochs as 5ep, steps as 2000step, a share as 0.25run"
EITHER = "train: give either epochs or steps"
NOWHERE = "no such file, and no shipped recipe of that name"

# --- unknown, missing, mistyped, out of range, contradictory


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
        ("train.validate_every=5", f"train.validate_every: 5 has no unit: {WRITE_DURATIONS}"),
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
        ("train.precision=fp16", "train.precision: should be 'fp32' or 'bf16', not 'fp16'"),
        ("distill.weight=-1", "distill.weight: should be greater than or equal to 0"),
        ("distill.temperature=0", "distill.temperature: should be greater than 0"),
        ("distill.switch.patience=0", "distill.switch.patience: should be greater than 0"),
        ("distill.hold=1.5run", "distill.hold: '1.5run': a share of the run is at most 1run"),
        ("loss.label_smoothing=1.5", "loss.label_smoothing: should be less than or equal to 1"),
        ("data.validation_share=1.0", "data.validation_share: should be less than 1"),
        ("data.augment=[crop, flop]", "data.augment.1: should be 'crop', 'flip' or 'cutout', not 'flop'"),
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
        ("train.optimizer.momentum=0", "train.optimizer: nesterov: true needs a momentum above 0"),
        ("train.validate_every=0ep", "train: validate_every: 0ep would never come round"),
        ("train.checkpoint_every=0step", "train: checkpoint_every: 0step would never come round"),
        (
            "data.source=image_folder",
            "data: source: image_folder needs image_size, the side in px to which its images are brought",
        ),
        (
            "data={source: cifar10, image_size: 64}",
            "data: image_size: 64 does not fit cifar10, whose images have 32 px",
        ),
        ("data.download=true", "data: download: true is for cifar10 and cifar100, not for shapes"),
        ("data.augment=[flip, flip]", "data: augment: each kind once"),
        ("report.thresholds=[90]", "report: thresholds: 90 is out of reach, top1 goes from 0 to 1"),
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
        ("data.source=cifar", "data.source: should be 'cifar10', 'cifar100', 'image_folder' or 'shapes', not 'cifar'"),
        ("train.optimizer={lr: 1}", "train.optimizer.name: missing"),
        ("train.optimizer.name=adam", "train.optimizer.name: should be one of 'sgd', 'adamw', not 'adam'"),
        ("train.lr_schedule.name=step", "train.lr_schedule.name: should be one of 'cosine', 'one_cycle'"),
    ],
)
def test_an_unknown_word_is_refused_with_those_known(recipe_file: Write, override: str, start: str) -> None:
    (problem,) = problems(recipe_file, override)
    assert problem.startswith(start)


def test_all_problems_are_told_at_once(recipe_file: Write) -> None:
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


# --- the teacher's own training


@pytest.mark.parametrize(
    ("teacher_train", "expected"),
    [
        ("{epoch: 3}", ["teacher.train.epoch: unknown key (did you mean 'epochs'?)"]),
        ("{batch_size: '8'}", ["teacher.train.batch_size: should be a valid integer, not '8'"]),
        ("{accumulate: 3}", ["teacher.train: accumulate: 3 does not divide batch_size: 8"]),
        ("{epochs: 3, steps: 4}", ["teacher.train: give either epochs or steps"]),
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


def test_they_are_told_together_with_others(recipe_file: Write) -> None:
    assert problems(recipe_file, "teacher.train={epoch: 3}", "data.sorce=x") == [
        "data.sorce: unknown key (did you mean 'source'?)",
        "teacher.train.epoch: unknown key (did you mean 'epochs'?)",
    ]


def test_a_mistake_in_train_is_not_told_twice(recipe_file: Write) -> None:
    assert len(problems(recipe_file, "teacher.train={epochs: 3}", "train.epoch=3")) == 1


# --- what is not a recipe at all


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty"),
        ("# nothing but a comment\n", "empty"),
        ("- a\n- b\n", "not a recipe, but a list; expected keys with values"),
        ("just words", "not a recipe, but a text; expected keys with values"),
        ("42", "not a recipe, but a number; expected keys with values"),
        ("name: [1, 2\ntask: x", "not valid YAML, line 2, column 5: expected ',' or ']', but got ':'"),
        ("name: a\n\ttask: b", "not valid YAML, line 2, column 1: found character '\\t' that cannot start any token"),
        ("name: a\nname: b", "not valid YAML, line 2, column 1: the key 'name' stands twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "not valid YAML, line 4, column 3: the key 'b' stands twice"),
        ("? [a, b]\n: 1", "not valid YAML, line 1, column 3: a key must be a word"),
        ("a: 1\n---\nb: 2", "not valid YAML, line 2, column 1: but found another document"),
        ("name: a\x00b", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("a: !!int many", "not valid YAML: a value does not fit its type: "),
        ("a: !!bool maybe", "not valid YAML: a value does not fit its type: "),
        ("a: " + "9" * 5000, "not valid YAML: a value does not fit its type: "),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML, line 1, column 4: could not determine a"),
        ("a: !!timestamp x", "not valid YAML, line 1, column 4: could not determine a constructor"),
        ("[" * 5000, "not valid YAML: nested too deeply"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not text in UTF-8"),
    ],
)
def test_what_is_no_recipe_is_told_in_one_line(recipe_file: Write, content: str | bytes, problem: str) -> None:
    path = recipe_file(content)
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert str(raised.value).startswith(f"recipe {path}: {problem}")
    assert "\n" not in str(raised.value)


def test_an_unreadable_file_is_told(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = recipe_file()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        load_recipe(path)


def test_a_byte_order_mark_is_no_harm(recipe_file: Write) -> None:
    content = Path(recipe_file()).read_text()
    assert load_recipe(recipe_file(b"\xef\xbb\xbf" + content.encode())).name == "tiny"


BOMB = "report: {{thresholds: [&a [x, x, x, x, x, x, x, x, x, x], {}]}}".format(
    ", ".join(f"&{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
)


def test_a_bomb_of_aliases_does_not_go_off(recipe_file: Write) -> None:
    started = time.monotonic()
    (problem,) = problems(recipe_file, content=f"{Path(recipe_file()).read_text()}{BOMB}\n")
    assert "more than 16 aliases" in problem
    assert time.monotonic() - started < 5


def test_a_bomb_of_merges_does_not_go_off() -> None:
    merges = "\n".join(f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}" for old, new in ("ab", "bc", "cd", "de"))
    with pytest.raises(RecipeError, match="more than 16 aliases"):
        parse_yaml(f"a: &a {{k: 1}}\n{merges}", "x")


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("teacher=&t {model: *t}", "teacher.model"),
        ("report.thresholds=&t [*t, *t]", "report.thresholds.0"),
        ("teacher.train=&t {optimizer: *t}", "teacher.train.optimizer"),
        ("x=&t [*t]", "x"),
    ],
)
def test_a_value_inside_itself_does_not_hang(recipe_file: Write, override: str, path: str) -> None:
    assert problems(recipe_file, override)[0].startswith(path)


ALIASES = """
name: aliases
task: classification
data: {source: shapes}
train: {epochs: 4, batch_size: 8, optimizer: &sgd {name: sgd, lr: 0.1, nesterov: true}, lr_schedule: {name: cosine}}
teacher: {model: small_cnn_weak, train: {optimizer: %s}}
student: {model: small_cnn_strong}
"""


def test_a_few_aliases_and_merges_are_fine(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(ALIASES % "{<<: *sgd, lr: 0.2}"))
    assert recipe.teacher_train().optimizer == SgdSection(name="sgd", lr=0.2, nesterov=True)
    assert recipe.train.optimizer == SgdSection(name="sgd", lr=0.1, nesterov=True)


def test_an_override_leaves_what_an_alias_shares_alone(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(ALIASES % "*sgd"), ["teacher.train.optimizer.lr=0.5"])
    assert recipe.teacher_train().optimizer.lr == 0.5
    assert recipe.train.optimizer.lr == 0.1


# --- YAML without its traps


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("-1.5e+2", -150.0),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("0", 0),
        ("-7", -7),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("truely", "truely"),
        ("5ep", "5ep"),
        ("0.5ep", "0.5ep"),
        ("2000step", "2000step"),
        ("1e3step", "1e3step"),
        ("0.98*baseline", "0.98*baseline"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-04-16", "2026-04-16"),
        ("1.2.3", "1.2.3"),
        ("'1'", "1"),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}", "x")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("name", ["1e3", "on", "true", "010", "2026-04-16", "1.5", "no", "null", "7", "12.30"])
def test_a_name_that_looks_like_something_else_survives_a_dump(recipe_file: Write, name: str) -> None:
    recipe = load_recipe(recipe_file(), [f"name='{name}'", f"data.root='{name}'"])
    assert recipe.name == name
    again = validate_recipe(parse_yaml(dump_recipe(recipe), "x"), "x")
    assert again == recipe


def test_a_dump_is_yaml_for_everybody_and_a_fixed_point(recipe_file: Write) -> None:
    overrides = [
        "train.checkpoint_every=1234567step",
        "distill.hold=0.1234567run",
        "distill.warmup=0.00001run",
        "report.thresholds=[0.123456789, 0.95*teacher, teacher]",
        "train.optimizer.weight_decay=1e-8",
        "data.root=häuser/図",
        "teacher.checkpoint=runs/old/model.safetensors",
        "train.ema.decay=0.999",
        "teacher.train={epochs: 2.5, optimizer: {name: adamw, lr: 1e-3}}",
    ]
    recipe = load_recipe(recipe_file(), overrides)
    text = dump_recipe(recipe)
    again = validate_recipe(parse_yaml(text, "x"), "x")
    assert again == recipe
    assert dump_recipe(again) == text
    assert yaml.safe_load(text)["data"]["root"] == "häuser/図"


def test_a_recipe_survives_json(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["train.validate_every=0.25ep"])
    assert validate_recipe(json.loads(recipe.model_dump_json()), "x") == recipe


# --- overrides


def test_overrides_are_laid_on_in_order(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["seed=3", "seed=4", "train.optimizer.lr=1e-3", "train.ema.decay=0.9"])
    assert recipe.seed == 4
    assert recipe.train.optimizer.lr == 1e-3
    assert recipe.train.optimizer == SgdSection(name="sgd", lr=1e-3, nesterov=True)
    assert recipe.train.ema is not None
    assert recipe.train.ema.decay == 0.9


def test_an_override_replaces_a_whole_section_or_clears_a_value(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(), ["train.optimizer={name: adamw, lr: 0.01}", "data.train_examples="])
    assert recipe.train.optimizer == AdamWSection(name="adamw", lr=0.01)
    assert recipe.model_dump()["data"]["train_examples"] is None


def test_a_length_in_one_unit_replaces_one_in_the_other(recipe_file: Write) -> None:
    assert load_recipe(recipe_file(), ["train.steps=7"]).train.total_steps(100) == 7
    assert load_recipe(recipe_file(), ["train.steps=7", "train.epochs=2"]).train.total_steps(100) == 200


def test_an_equals_sign_in_the_value_is_part_of_it(recipe_file: Write) -> None:
    assert str(load_recipe(recipe_file(), ["data.root=a=b"]).model_dump(mode="json")["data"]["root"]) == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: write it as section.key=value"),
        ("=3", "--set =3: write it as section.key=value"),
        ("train..epochs=3", "--set train..epochs=3: write it as section.key=value"),
        (".seed=3", "--set .seed=3: write it as section.key=value"),
        ("train.epochs.most=3", "--set train.epochs.most=3: train.epochs is a value, not a section"),
        ("data.augment=[crop", "--set data.augment=[crop: not valid YAML, line 1, column 6: "),
    ],
)
def test_a_malformed_override_is_named(recipe_file: Write, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe_file(), [override])
    assert str(raised.value).startswith(message)


def test_overrides_on_a_finished_recipe(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file())
    assert with_overrides(recipe, []) is recipe
    changed = with_overrides(recipe, ["train.steps=7", "data.root=elsewhere"])
    assert changed == load_recipe(recipe_file(), ["train.steps=7", "data.root=elsewhere"])
    assert recipe.train.steps is None
    with pytest.raises(RecipeError, match=r"^--set: train.epoch: unknown key \(did you mean 'epochs'\?\)$"):
        with_overrides(recipe, ["train.epoch=7"])


# --- finding one


@pytest.mark.parametrize("name", ["demo", "demo.yaml"])
def test_a_shipped_recipe_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == shipped_recipes()["demo"]
    assert load_recipe(name).name == "demo"


def test_a_file_goes_before_a_shipped_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: Write
) -> None:
    Path(recipe_file()).rename(tmp_path / "demo.yaml")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo.yaml") == Path("demo.yaml")
    assert load_recipe("demo.yaml").name == "tiny"
    assert find_recipe("demo") == shipped_recipes()["demo"]


def test_a_file_may_have_any_ending(tmp_path: Path, recipe_file: Write) -> None:
    path = Path(recipe_file()).rename(tmp_path / "mine")
    assert load_recipe(str(path)).name == "tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmeo", f"recipe dmeo: {NOWHERE} (did you mean 'demo'?)"),
        ("recipes/demoo.yaml", f"recipe recipes/demoo.yaml: {NOWHERE} (did you mean 'demo'?)"),
        ("cifar10_resnet65.yaml", f"recipe cifar10_resnet65.yaml: {NOWHERE} (did you mean 'cifar10_resnet56'?)"),
        ("", "recipe : "),
        ("qqqq", f"recipe qqqq: {NOWHERE}; shipped are: cifar10_cpu, "),
        (".", "recipe .: a folder, not a file"),
    ],
)
def test_a_recipe_that_is_not_there_is_told_with_near_names(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        find_recipe(name)
    assert str(raised.value).startswith(message)
