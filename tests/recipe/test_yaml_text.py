"""Reading and writing YAML: implicit conversions, damaged files, alias bombs."""

import json
import time
from pathlib import Path

import pytest
import yaml
from known import load_recipe, validate_recipe
from recipe_problems import Write, problems

from w2skd.errors import RecipeError
from w2skd.recipe.load import dump_recipe, parse_yaml
from w2skd.recipe.train import SgdSection


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty"),
        ("# nothing but a comment\n", "empty"),
        ("- a\n- b\n", "a recipe must be a mapping of keys to values, not a list"),
        ("just words", "a recipe must be a mapping of keys to values, not a text"),
        ("42", "a recipe must be a mapping of keys to values, not a number"),
        ("name: [1, 2\ntask: x", "not valid YAML, line 2, column 5: expected ',' or ']', but got ':'"),
        ("name: a\n\ttask: b", "not valid YAML, line 2, column 1: found character '\\t' that cannot start any token"),
        ("name: a\nname: b", "not valid YAML, line 2, column 1: the key 'name' occurs twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", "not valid YAML, line 4, column 3: the key 'b' occurs twice"),
        ("? [a, b]\n: 1", "not valid YAML, line 1, column 3: a key must be text"),
        ("a: 1\n---\nb: 2", "not valid YAML, line 2, column 1: but found another document"),
        ("name: a\x00b", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("a: !!int many", "not valid YAML: a value does not fit its type: "),
        ("a: !!bool maybe", "not valid YAML: a value does not fit its type: "),
        ("a: " + "9" * 5000, "not valid YAML: a value does not fit its type: "),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML, line 1, column 4: could not determine a"),
        ("a: !!timestamp x", "not valid YAML, line 1, column 4: could not determine a constructor"),
        ("[" * 5000, "not valid YAML: nested too deeply"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_recipe_is_a_one_line_error(recipe_file: Write, content: str | bytes, problem: str) -> None:
    path = recipe_file(content)
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert str(raised.value).startswith(f"recipe {path}: {problem}")
    assert "\n" not in str(raised.value)


def test_an_unreadable_file_is_reported(recipe_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = recipe_file()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(RecipeError, match="cannot be read: Permission denied"):
        load_recipe(path)


def test_a_byte_order_mark_is_accepted(recipe_file: Write) -> None:
    content = Path(recipe_file()).read_text()
    assert load_recipe(recipe_file(b"\xef\xbb\xbf" + content.encode())).name == "tiny"


BOMB = "report: {{thresholds: [&a [x, x, x, x, x, x, x, x, x, x], {}]}}".format(
    ", ".join(f"&{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
)


def test_an_alias_bomb_is_refused(recipe_file: Write) -> None:
    started = time.monotonic()
    (problem,) = problems(recipe_file, content=f"{Path(recipe_file()).read_text()}{BOMB}\n")
    assert "more than 16 aliases" in problem
    assert time.monotonic() - started < 5


def test_a_merge_bomb_is_refused() -> None:
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
    assert recipe.train_of("teacher").optimizer == SgdSection(name="sgd", lr=0.2, nesterov=True)
    assert recipe.train.optimizer == SgdSection(name="sgd", lr=0.1, nesterov=True)


def test_an_override_does_not_change_other_uses_of_an_alias(recipe_file: Write) -> None:
    recipe = load_recipe(recipe_file(ALIASES % "*sgd"), ["teacher.train.optimizer.lr=0.5"])
    assert recipe.train_of("teacher").optimizer.lr == 0.5
    assert recipe.train.optimizer.lr == 0.1


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


def test_a_dump_is_standard_yaml_and_a_fixed_point(recipe_file: Write) -> None:
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
