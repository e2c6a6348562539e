"""Loading recipes from files and overrides."""

from pathlib import Path

import pytest
from known import load_recipe
from recipe_problems import Write

from w2skd.errors import RecipeError
from w2skd.recipe.load import find_recipe, shipped_recipes, with_overrides
from w2skd.recipe.train import AdamWSection, SgdSection

NOWHERE = "no such file or shipped recipe"


def test_overrides_are_applied_in_order(recipe_file: Write) -> None:
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
        ("seed", "--set seed: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("train..epochs=3", "--set train..epochs=3: expected section.key=value"),
        (".seed=3", "--set .seed=3: expected section.key=value"),
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


@pytest.mark.parametrize("name", ["demo", "demo.yaml"])
def test_a_shipped_recipe_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == shipped_recipes()["demo"]
    assert load_recipe(name).name == "demo"


def test_a_file_takes_precedence_over_a_shipped_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: Write
) -> None:
    Path(recipe_file()).rename(tmp_path / "demo.yaml")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo.yaml") == Path("demo.yaml")
    assert load_recipe("demo.yaml").name == "tiny"
    assert find_recipe("demo") == shipped_recipes()["demo"]


def test_a_file_can_have_any_suffix(tmp_path: Path, recipe_file: Write) -> None:
    path = Path(recipe_file()).rename(tmp_path / "mine")
    assert load_recipe(str(path)).name == "tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dmeo", f"recipe dmeo: {NOWHERE} (did you mean 'demo'?)"),
        ("recipes/demoo.yaml", f"recipe recipes/demoo.yaml: {NOWHERE} (did you mean 'demo'?)"),
        ("cifar10_resnet65.yaml", f"recipe cifar10_resnet65.yaml: {NOWHERE} (did you mean 'cifar10_resnet56'?)"),
        ("", "recipe : "),
        ("qqqq", f"recipe qqqq: {NOWHERE}; shipped recipes: bccd_cpu, "),
        (".", "recipe .: is a folder, not a file"),
    ],
)
def test_a_missing_recipe_is_reported_with_a_similar_name(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as raised:
        find_recipe(name)
    assert str(raised.value).startswith(message)
