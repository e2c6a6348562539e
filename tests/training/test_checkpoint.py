import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from known import validate_recipe
from safetensors.torch import save_file
from tiny import RECIPE, assert_same_weights, largest_file
from torch import nn

from w2skd.errors import CheckpointError, OutputError
from w2skd.models.catalog import build_classifier
from w2skd.recipe.train import EmaSection
from w2skd.training.checkpoint import load_checkpoint, load_last_checkpoint, rewind_to, save_checkpoint
from w2skd.training.optimizer import build_average
from w2skd.weights.load import Weights, load_into, load_weights, number_of_classes, save_model

RECIPE_VALUES = yaml.safe_load(RECIPE)


def state(step: int) -> dict[str, Any]:
    engine = {"step": step, "model": {"weight": torch.full((3,), float(step))}, "average": None}
    return {
        "engine": {**engine, "best": None, "best_step": None},
        "recipe": RECIPE_VALUES,
        "role": "student",
        "details": {},
        "teacher": None,
        "metrics_offset": 0,
        "threads": 1,
        "clock": {"train": 1.0},
    }


def step_of(path: Path) -> int:
    return load_checkpoint(path)["engine"]["step"]


def steps_in(folder: Path) -> dict[str, int]:
    return {path.stem: step_of(path) for path in sorted(folder.iterdir())}


class Arms:
    """Creates a file when its pickle is loaded unsafely."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, best in ((1, False), (2, True), (3, False), (4, False)):
        save_checkpoint(tmp_path, state(step), best=best)
    assert steps_in(tmp_path) == {"best": 2, "last": 4, "previous": 3}
    save_checkpoint(tmp_path, state(5), best=True)
    assert steps_in(tmp_path) == {"best": 5, "last": 5, "previous": 4}


def test_the_best_is_a_hard_link_until_the_last_changes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), best=True)
    assert (tmp_path / "best.pt").samefile(tmp_path / "last.pt")


def test_the_best_is_a_copy_if_files_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(tmp_path, state(1), best=True)
    save_checkpoint(tmp_path, state(2), best=False)
    assert steps_in(tmp_path) == {"best": 1, "last": 2, "previous": 1}


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("engine",), [1], "engine must be an object, not [1]"),
        (("engine", "step"), "3", 'engine.step must be a whole number of 0 or more, not "3"'),
        (("engine", "step"), True, "engine.step must be a whole number of 0 or more, not true"),
        (("engine", "best"), float("nan"), "engine.best must be a finite number or null, not NaN"),
        (("engine", "step"), None, "engine.step must be a whole number of 0 or more, not null"),
        (("engine", "best_step"), torch.ones(1), "engine.best_step must be a whole number of 0 or more or null, not"),
        (("metrics_offset",), -1, "metrics_offset must be a whole number of 0 or more, not -1"),
        (("clock",), {"train": "long"}, 'clock.train must be a finite number of 0 or more, not "long"'),
        (("clock",), {"train": float("inf")}, "clock.train must be a finite number of 0 or more, not Infinity"),
        (("teacher",), "mine", 'teacher must be an object or null, not "mine"'),
        (("teacher",), {"checkpoint": "x"}, "teacher.fingerprint is missing"),
        (("threads",), ..., "threads is missing"),
    ],
)
def test_a_field_of_another_type_is_named(place: tuple[str, ...], value: Any, problem: str, tmp_path: Path) -> None:
    values: dict[str, Any] = state(1)
    parent = values[place[0]] if len(place) == 2 else values
    parent[place[-1]] = value
    if value is ...:
        del parent[place[-1]]
    save_checkpoint(tmp_path, values, best=False)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(tmp_path / "last.pt")
    assert str(raised.value).startswith(f"{tmp_path}/last.pt: damaged ({problem}")


def test_a_saved_state_is_loaded_unchanged(tmp_path: Path) -> None:
    values = state(1) | {"nested": {"list": [1, 2.5, None, True], "name": "x"}, "clock": {"train": 0.1}}
    save_checkpoint(tmp_path, values, best=False)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert {key: loaded[key] for key in ("nested", "clock")} == {key: values[key] for key in ("nested", "clock")}
    assert torch.equal(loaded["engine"]["model"]["weight"], values["engine"]["model"]["weight"])


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), best=True)
    save_checkpoint(tmp_path, state(2), best=False)
    large = state(3) | {"large": torch.zeros(100_000)}
    with largest_file(50_000), pytest.raises(OutputError, match=r"^cannot write .*next\.pt: File too large$"):
        save_checkpoint(tmp_path, large, best=True)
    assert steps_in(tmp_path) == {"best": 1, "last": 2, "previous": 1}


def test_a_rewind_removes_later_checkpoints(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), best=step == 1)
    rewind_to(tmp_path, load_checkpoint(tmp_path / "best.pt"))
    assert steps_in(tmp_path) == {"best": 1, "last": 1, "previous": 1}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_rewind_removes_a_later_or_damaged_best(damaged: bool, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), best=damaged)
    earlier = load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(tmp_path, state(2), best=not damaged)
    if damaged:
        (tmp_path / "best.pt").unlink()  # a link to a checkpoint that must stay intact
        (tmp_path / "best.pt").write_bytes(b"PK")
    rewind_to(tmp_path, earlier)
    assert steps_in(tmp_path) == {"last": 1, "previous": 1}


def test_the_newest_readable_checkpoint_is_found(tmp_path: Path) -> None:
    assert load_last_checkpoint(tmp_path) == (None, None)
    save_checkpoint(tmp_path, state(1), best=False)
    save_checkpoint(tmp_path, state(2), best=False)
    found, problem = load_last_checkpoint(tmp_path)
    assert found
    assert (found["engine"]["step"], problem) == (2, None)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-200])
    found, problem = load_last_checkpoint(tmp_path)
    assert found
    assert problem
    assert found["engine"]["step"] == 1
    assert problem.startswith(f"{tmp_path / 'last.pt'}: damaged or truncated")
    (tmp_path / "last.pt").unlink()  # the state after a crash between two renames
    found, problem = load_last_checkpoint(tmp_path)
    assert found
    assert (found["engine"]["step"], problem) == (1, None)


def test_if_both_are_damaged_both_are_reported(tmp_path: Path) -> None:
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged.*; .*previous\.pt: damaged"):
        load_last_checkpoint(tmp_path)


def attempt(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        return load_checkpoint(path), None
    except CheckpointError as error:
        return {}, str(error)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_damage_is_refused_clearly(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), best=False)
    whole = (tmp_path / "last.pt").read_bytes()
    damaged = tmp_path / "damaged.pt"
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    for _ in range(60):
        content = bytearray(whole)
        for _ in range(3):
            content[draw(len(content))] ^= 1 + draw(255)
        damaged.write_bytes(content[: len(content) - draw(2) * draw(len(content))])
        values, problem = attempt(damaged)
        if problem is None:  # only padding was hit
            assert torch.equal(values["engine"]["model"]["weight"], torch.ones(3))
        else:
            assert problem.startswith(f"{damaged}: ")
            assert len(problem.splitlines()) == 1


def test_a_weight_corrupted_on_disk_is_detected(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), best=False)
    path = tmp_path / "last.pt"
    content = path.read_bytes()
    ones = torch.ones(3).numpy().tobytes()
    assert content.count(ones) == 1
    path.write_bytes(content.replace(ones, torch.full((3,), 2.0).numpy().tobytes()))
    for load in (load_checkpoint, load_weights):
        with pytest.raises(CheckpointError, match=r"last\.pt: damaged \(wrong checksum of archive/data/0\)$"):
            load(path)


@pytest.mark.parametrize("load", [load_checkpoint, load_weights])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, load: Any) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "evil.pt"
    torch.save({"format": 1, "engine": Arms(mark)}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt: refused: it contains pickled code \(posix\.mkdir\)"):
        load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the weapon is blunt"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Arms(mark)))
    with pytest.raises(CheckpointError, match=r"evil\.pt: "):
        load_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"format": 99, "engine": {}}, r"format 99 is not supported; this version reads 1$"),
        ({"epoch": 3}, r"not a training checkpoint of w2skd$"),
        ([1, 2], r"not a training checkpoint of w2skd$"),
    ],
)
def test_other_files_are_no_checkpoints(tmp_path: Path, values: Any, problem: str) -> None:
    torch.save(values, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=problem):
        load_checkpoint(tmp_path / "x.pt")


def model(name: str = "small_cnn_weak", classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_classifier(name, classes)


def test_a_finished_model_contains_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    recipe = validate_recipe(RECIPE_VALUES, "test")
    trained = model()
    save_model(path, trained.state_dict(), recipe, "student", {"classes": ["a", "b"], "best": 0.5})
    for source in (path, tmp_path):
        weights = load_weights(source)
        assert_same_weights(weights.state, trained.state_dict())
        assert (weights.path, weights.recipe, weights.role) == (path, recipe.model_dump(mode="json"), "student")
        assert weights.details == {"classes": ["a", "b"], "best": 0.5}
        assert weights.model_name == recipe.student.model


def test_weights_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "c": shared.reshape(2, 3).T, "d": shared[2:]}
    save_model(tmp_path / "m.safetensors", tensors, validate_recipe(RECIPE_VALUES, "test"), "teacher", {})
    weights = load_weights(tmp_path / "m.safetensors")
    assert_same_weights(weights.state, tensors)
    assert weights.model_name == "cifar_resnet8"


def test_averaged_weights_are_loaded_from_a_training_checkpoint(tmp_path: Path) -> None:
    trained = model()
    average = build_average(trained, EmaSection(decay=0.5), 1, 1)
    assert average is not None
    average.update_parameters(trained)
    average.module.load_state_dict(model(seed=1).state_dict())
    values = {"engine": {"model": trained.state_dict(), "average": average.state_dict()}, "recipe": RECIPE_VALUES}
    save_checkpoint(tmp_path, {**values, "role": "student", "details": {"classes": ["a"]}}, best=False)
    weights = load_weights(tmp_path / "last.pt")
    assert_same_weights(weights.state, model(seed=1).state_dict())
    assert (weights.role, weights.details) == ("student", {"classes": ["a"]})
    values["engine"]["average"] = None
    save_checkpoint(tmp_path, values, best=False)
    assert_same_weights(load_weights(tmp_path / "last.pt").state, trained.state_dict())


def test_state_dicts_of_other_tools_load_without_a_recipe(tmp_path: Path) -> None:
    trained = model()
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    torch.save(trained.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(trained.state_dict(), tmp_path / "x.safetensors", {"format": "pt"})
    for name in ("x.pth", "old.pt", "x.safetensors"):
        weights = load_weights(tmp_path / name)
        assert_same_weights(weights.state, trained.state_dict())
        assert (weights.recipe, weights.role, weights.details, weights.model_name) == (None, None, {}, None)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module", "net"])
def test_weights_are_found_under_the_keys_of_other_tools(key: str, tmp_path: Path) -> None:
    trained = model()
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    options = argparse.Namespace(lr=0.1, model="resnet18")  # saved by torchvision's and timm's training scripts
    values = {key: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "args": options, "best": 0.5}
    torch.save({**values, "arch": "small_cnn_weak"}, tmp_path / "x.pth.tar")
    weights = load_weights(tmp_path / "x.pth.tar")
    assert weights.details == {"layout": key, "arch": "small_cnn_weak"}
    assert (weights.recipe, weights.role, weights.model_name) == (None, None, None)
    target = model(seed=1)
    load_into(target, weights, expected="small_cnn_weak")
    assert_same_weights(target.state_dict(), trained.state_dict())


@pytest.mark.parametrize(("key", "average_key"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_averaged_weights_of_other_tools_take_precedence(key: str, average_key: str, tmp_path: Path) -> None:
    trained, averaged = model(), torch.optim.swa_utils.AveragedModel(model(seed=1))
    torch.save({key: trained.state_dict(), average_key: averaged.state_dict()}, tmp_path / "x.pth")
    weights = load_weights(tmp_path / "x.pth")
    assert weights.details == {"layout": average_key}
    assert_same_weights(weights.state, averaged.module.state_dict())
    torch.save({key: trained.state_dict(), average_key: None}, tmp_path / "x.pth")
    assert load_weights(tmp_path / "x.pth").details == {"layout": key}
    torch.save(averaged.state_dict(), tmp_path / "x.pth")
    assert_same_weights(load_weights(tmp_path / "x.pth").state, averaged.module.state_dict())


def test_code_in_a_namespace_is_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "was-run", tmp_path / "evil.pt"
    trained = model().state_dict()
    torch.save({"model": trained, "args": argparse.Namespace(weapon=Arms(mark))}, path)
    assert_same_weights(load_weights(path).state, trained)
    assert not mark.exists()
    torch.save(argparse.Namespace(), path)
    with pytest.raises(pickle.UnpicklingError):  # the permission holds for our own loading only
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_into_a_full_precision_model(dtype: torch.dtype) -> None:
    target, source = model(seed=1), model().to(dtype).state_dict()
    load_into(target, Weights(Path("w"), source), expected="small_cnn_weak")
    assert {tensor.dtype for tensor in target.parameters()} == {torch.float32}
    assert_same_weights(
        target.state_dict(), {name: value.to(target.state_dict()[name]) for name, value in source.items()}
    )


def test_the_number_of_classes_is_read_from_the_head() -> None:
    own = dict(model(classes=7).state_dict())

    def count(state: dict[str, torch.Tensor]) -> int | None:
        return number_of_classes(model(classes=10), Weights(Path("w"), state), 10)

    assert count(own) == 7
    assert count({f"module.{name}": value for name, value in own.items()}) == 7
    assert count(dict(model(classes=10).state_dict())) == 10
    assert count(own | {"features.0.weight": torch.zeros(7, 3, 3, 3)}) is None
    assert count(dict(model("small_cnn_strong", 7).state_dict())) is None
    assert count(own | {"extra": torch.zeros(1)}) is None


def test_modules_receive_the_version_of_their_weights(tmp_path: Path) -> None:
    name = "torchvision:mnasnet0_5"
    trained = model(name)
    save_file(trained.state_dict(), tmp_path / "x.safetensors")  # this format stores no versions
    target = model(name, seed=1)
    load_into(target, load_weights(tmp_path / "x.safetensors"), expected=name)
    assert_same_weights(target.state_dict(), trained.state_dict())


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "running").mkdir()
    (tmp_path / "running" / "status.json").write_text("{}")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"epoch": 1}, tmp_path / "other.pt")
    problems = {
        "missing.pt": "missing.pt: no such checkpoint",
        "missing": "missing: no such checkpoint",
        "empty": "empty: not a run directory, model.safetensors is missing",
        "running": "running: run not finished, model.safetensors is missing",
        "cut.safetensors": "cut.safetensors: damaged or truncated",
        "text.pt": "text.pt: is a text file, not a checkpoint",
        "other.pt": "other.pt: contains no weights: expected a state dict, or one anywhere inside; its keys: epoch",
    }
    for name, problem in problems.items():
        with pytest.raises(CheckpointError) as caught:
            load_weights(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path}/{problem}")


def test_weights_are_loaded_completely_or_not_at_all() -> None:
    target, source = model(seed=1), dict(model().state_dict())
    load_into(target, Weights(Path("w"), source), expected="small_cnn_weak")
    assert_same_weights(target.state_dict(), source)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    spoilt = dict(model(seed=2).state_dict())
    del spoilt["head.bias"]
    with pytest.raises(CheckpointError):
        load_into(target, Weights(Path("w"), spoilt), expected="small_cnn_weak")
    assert_same_weights(target.state_dict(), before)


def test_the_likely_reason_of_a_mismatch_is_reported() -> None:
    recipe = validate_recipe(RECIPE_VALUES, "test").model_dump(mode="json")

    def misfit(weights: dict[str, torch.Tensor], **about: Any) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_into(model(), Weights(Path("x.pt"), weights, **about), expected="small_cnn_weak")
        return str(caught.value)

    own = dict(model().state_dict())
    other = dict(model("cifar_resnet8").state_dict())
    assert misfit(other, recipe=recipe, role="teacher") == "x.pt: made for cifar_resnet8, not for small_cnn_weak"
    assert misfit(other).startswith("x.pt: not the weights of small_cnn_weak: ")
    assert misfit(dict(model(classes=7).state_dict())) == "x.pt: its small_cnn_weak has 7 classes, the data has 10"
    name = next(iter(own))
    wide = torch.zeros(1, 2)
    expected = f"x.pt: does not fit small_cnn_weak: {name} is (1, 2), expected {tuple(own[name].shape)}"
    assert misfit(own | {name: wide}) == expected
    assert misfit({**own, "extra": wide}) == "x.pt: not the weights of small_cnn_weak: 1 unexpected (extra)"
    assert misfit(other, details={"arch": "resnet50"}) == "x.pt: made for resnet50, not for small_cnn_weak"
    seven = misfit(dict(model(classes=7).state_dict()), details={"arch": "small_cnn_weak"})
    assert seven == "x.pt: its small_cnn_weak has 7 classes, the data has 10"
