"""Weights are read wherever they lie and whatever lies beside them, and no code ever runs."""

import collections
import datetime
import enum
import pathlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import assert_same_weights
from torch import Tensor, nn

from w2skd.errors import CheckpointError
from w2skd.models.catalog import build_classifier
from w2skd.weights.load import Weights, check_finite, load_into, load_weights

MODEL = "small_cnn_weak"
FLOAT8 = torch.float8_e4m3fn


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_classifier(MODEL, 3)


STATE: dict[str, Tensor] = model().state_dict()
OTHER: dict[str, Tensor] = model(1).state_dict()


class Phase(enum.Enum):
    LATE = 1


class Meter:
    """A class that no other process can import."""

    def __init__(self, value: float):
        self.value = value


BESIDE = {
    "numpy numbers": {"best": np.float64(0.7), "epoch": np.int64(3), "done": np.bool_(True)},
    "numpy array": {"curve": np.arange(4.0)},
    "defaultdict": {"meters": collections.defaultdict(list, loss=[1.0])},
    "counter": {"seen": collections.Counter("abca")},
    "deque": {"last": collections.deque([1, 2], maxlen=2)},
    "date": {"saved": datetime.datetime(2024, 5, 1, 12), "took": datetime.timedelta(hours=3)},
    "path": {"output": pathlib.PurePosixPath("out/a")},
    "enum": {"phase": Phase.LATE},
    "object": {"meter": Meter(0.5), "meters": [Meter(1.0), (Meter(2.0),)]},
    "complex and sets": {"z": 1j, "seen": {1, 2}, "frozen": frozenset("ab")},
    "class": {"kind": Phase, "function": model},
    "generator": {"rng": np.random.RandomState(0).get_state()},
    "slice and range": {"part": slice(1, 2), "rows": range(3)},
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", BESIDE)
def test_weights_are_read_whatever_stands_beside_them(beside: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pth"
    values = {"state_dict": STATE, **BESIDE[beside]}
    torch.save(values, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    weights = load_weights(path)
    assert_same_weights(weights.state, STATE)
    target = model(2)
    load_into(target, weights, expected=MODEL)
    assert_same_weights(target.state_dict(), STATE)


def test_tensors_of_every_kind_come_back_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    state = {
        **{str(dtype): (base % 5).to(dtype) for dtype in dtypes},
        "complex": base.to(torch.complex64),
        "view": base[3:9],
        "transposed": base.view(4, 6).t(),
        "scalar": base[7],
        "empty": torch.empty(0, 3),
        "parameter": nn.Parameter(base.clone()),
        "channels_last": base.view(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "float8": base.to(torch.float8_e4m3fn),
    }
    for zipped in (True, False):
        kept = {name: value for name, value in state.items() if zipped or name != "float8"}
        torch.save(
            {"state": kept, "date": datetime.date(2024, 1, 1)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped
        )
        found = load_weights(tmp_path / "x.pt").state
        assert found.keys() == kept.keys()
        for name, tensor in kept.items():
            same = (found[name].dtype, found[name].shape, found[name].stride()) == (
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
            )
            assert same, name
            assert torch.equal(
                found[name].double() if name == "float8" else found[name],
                tensor.double() if name == "float8" else tensor,
            ), name


LAYOUTS = {
    "model.state_dict": lambda: {"model": {"state_dict": STATE}, "epoch": 3},
    "checkpoint.ema.module": lambda: {"checkpoint": {"ema": {"module": STATE}}, "step": torch.tensor(3)},
    "models.0": lambda: {"models": [STATE]},
    "student.backbone": lambda: {"student": {"backbone": STATE, "head": {"weight": torch.zeros(9, 9)}}},
    "net": lambda: {"net": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(5000, 90)}}}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_where_they_lie(layout: str, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](), tmp_path / "x.pth")
    target = model(2)
    load_into(target, load_weights(tmp_path / "x.pth"), expected=MODEL)
    assert_same_weights(target.state_dict(), STATE)
    chosen = load_weights(tmp_path / "x.pth", layout)
    assert chosen.details["layout"] == layout
    assert_same_weights(chosen.state, STATE)


def test_the_set_that_fits_is_chosen_even_if_another_is_likelier(tmp_path: Path) -> None:
    large = {"weight": torch.zeros(2000, 2000)}
    torch.save({"state_dict": large, "student": STATE}, tmp_path / "x.pth")
    target = model(2)
    load_into(target, load_weights(tmp_path / "x.pth"), expected=MODEL)
    assert_same_weights(target.state_dict(), STATE)
    with pytest.raises(CheckpointError, match=f"not the weights of {MODEL}"):
        load_into(target, load_weights(tmp_path / "x.pth", "state_dict"), expected=MODEL)


@pytest.mark.parametrize(
    "averaged", ["model_ema", "state_dict_ema", "ema_state_dict", "ema", "swa_model", "ema.module"]
)
def test_averaged_weights_are_preferred_and_the_choice_is_told(averaged: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    nested: Any = OTHER
    for key in reversed(averaged.split(".")):
        nested = {key: nested}
    torch.save({"model": STATE, **nested}, path)
    weights = load_weights(path)
    assert_same_weights(weights.state, OTHER)
    [remark] = load_into(model(2), weights, expected=MODEL)
    assert remark == f"uses '{averaged}'; the file also has 'model', which would fit: choose with --weights KEY"
    plain = load_weights(path, "model")
    assert_same_weights(plain.state, STATE)
    assert load_into(model(2), plain, expected=MODEL) == ()
    with pytest.raises(
        CheckpointError, match=r"has no weights under 'modl' \(did you mean 'model'\?\); it has .*model"
    ):
        load_weights(path, "modl")


def test_a_run_and_a_safetensors_file_have_one_set(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="has one set of weights and none called 'ema': omit the key"):
        load_weights(tmp_path / "x.safetensors", "ema")


def test_what_tools_leave_in_a_state_dict_is_ignored(tmp_path: Path) -> None:
    modules = {key.rpartition(".")[0] for key in STATE}
    counters = {f"{name}.{kind}": torch.zeros(1) for name in modules for kind in ("total_ops", "total_params")}
    extra = {"total_ops": torch.zeros(1), "_extra_state": None, "num_updates": 1200, "name": "run 7", "blob": b"\0"}
    torch.save({**STATE, **counters, **extra, "initted": torch.tensor(True)}, tmp_path / "x.pth")
    target = model(2)
    [remark] = load_into(target, load_weights(tmp_path / "x.pth"), expected=MODEL)
    count = len(modules)
    assert remark == (
        f"ignored {2 * count + 2} entries that tools add and models do not use: total_ops ({count + 1}), "
        f"total_params ({count}), initted (1)"
    )
    assert_same_weights(target.state_dict(), STATE)


def test_a_models_own_entries_of_such_names_are_kept() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("num_updates", torch.zeros(1))

    target = Counting()
    assert load_into(target, Weights(Path("w"), {"num_updates": torch.ones(1)}), expected="counting") == ()
    assert target.num_updates == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["features.0.weight", "features.1.running_var", "head.bias"])
def test_weights_that_are_not_finite_are_refused(name: str, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in STATE.items()}
    state[name].view(-1)[-1] = value
    before = model(2)
    with pytest.raises(
        CheckpointError, match=rf"w\.pth: {name} is not finite: 1 of [\d,]+ values are NaN or infinite\. T"
    ):
        load_into(before, Weights(Path("w.pth"), state), expected=MODEL)
    assert_same_weights(before.state_dict(), model(2).state_dict())


def test_large_and_short_numbers_are_finite() -> None:
    state = {"large": torch.full((9,), 3e38), "half": torch.full((9,), 6e4).half(), "byte": torch.ones(2).to(FLOAT8)}
    check_finite(Path("w"), state, {})
    state["byte"] = torch.tensor([1.0, float("nan")]).to(FLOAT8)
    with pytest.raises(CheckpointError, match="byte is not finite: 1 of 2 values"):
        check_finite(Path("w"), state, {})


def test_a_models_own_infinities_are_no_damage() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -float("inf")]))

    load_into(Masked(), Weights(Path("w"), Masked().state_dict()), expected="masked")
    with pytest.raises(CheckpointError, match="mask is not finite"):
        load_into(Masked(), Weights(Path("w"), {"mask": torch.tensor([-float("inf"), 0.0])}), expected="masked")


def whole_models() -> Iterator[Any]:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    yield module
    yield {"model": module, "epoch": 3}
    yield {"ema": None, "model": model(), "date": datetime.date(2024, 1, 1)}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("number", range(3))
def test_a_whole_pickled_model_is_refused_with_the_way_out(number: int, zipped: bool, tmp_path: Path) -> None:
    torch.save(list(whole_models())[number], tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"refused: it contains a whole pickled model .* save torch\.save\(model\.s"
    ):
        load_weights(tmp_path / "x.pt")
