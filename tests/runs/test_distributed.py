"""Collectives: with one process, where they do nothing, and with two real processes."""

import os
from typing import Any

import pytest
import torch
from processes import run_ranks, values
from torch import nn

from w2skd.errors import DataError, OutputError, UserError
from w2skd.platform.ranks import Ranks, process_group, ranks_from_environment

CPU = torch.device("cpu")


def test_torchrun_tells_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_from_environment() == Ranks(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks_from_environment() == Ranks(5, 8, 1)
    assert not ranks_from_environment().is_main


def test_a_process_alone_agrees_with_itself() -> None:
    alone, tensor, value = Ranks(), torch.tensor([1.0, 2.0]), object()
    assert alone.is_main
    assert alone.sum_(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
    assert alone.decide(value) is value
    assert alone.on_main(lambda: value) is value
    assert alone.on_all(lambda: value) is value
    assert alone.gather(value) == [value]
    assert alone.any(True) is True
    assert alone.any(False) is False
    norm = nn.BatchNorm1d(2)
    norm.running_mean.copy_(tensor)
    alone.average_buffers_([norm])
    assert norm.running_mean.tolist() == [1.0, 2.0]
    assert not alone.any(False)


def test_a_process_alone_needs_no_group() -> None:
    with process_group(Ranks(), CPU):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("ask", [Ranks().on_main, Ranks().on_all])
@pytest.mark.parametrize("kind", [DataError, RuntimeError])
def test_alone_an_error_stays_what_it_is(ask: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^too bad$"):
        ask(lambda: fail(kind("too bad")))


def fail(error: Exception) -> None:
    raise error


@pytest.fixture(scope="module")
def pair() -> list[dict[str, Any]]:
    """The results of two ranks."""
    return values(run_ranks(agree))


def agree(ranks: Ranks) -> dict[str, Any]:
    """Every collective, on values that differ between the ranks."""
    seen: dict[str, Any] = {}
    with process_group(ranks, CPU):
        tensor = torch.tensor([1.0, 10.0]) * (ranks.rank + 1)
        seen["sum"] = ranks.sum_(tensor).tolist()
        seen["sum in place"] = tensor.tolist()
        seen["decide"] = ranks.decide({"from": ranks.rank})
        seen["decide None"] = ranks.decide(None if ranks.is_main else "not this")
        calls: list[int] = []
        seen["on_main"] = ranks.on_main(lambda: calls.append(1) or f"rank {ranks.rank}")
        seen["on_main calls"] = len(calls)
        seen["on_main error"] = caught(lambda: ranks.on_main(lambda: fail(OutputError(f"disk of {ranks.rank}"))))
        seen["on_all"] = ranks.on_all(lambda: f"own {ranks.rank}")
        seen["on_all error"] = caught(lambda: ranks.on_all(lambda: fail_on(1, ranks)))
        seen["on_all errors"] = caught(lambda: ranks.on_all(lambda: fail(DataError(f"data of {ranks.rank}"))))
        seen["gather"] = ranks.gather(("value", ranks.rank))
        seen["any"] = [ranks.any(flag) for flag in (False, ranks.rank == 1, ranks.rank == 0, True)]
        network = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
        network[0].running_mean.fill_(ranks.rank)
        network[1].running_var.fill_(3.0 + 2 * ranks.rank)
        network[0].num_batches_tracked.fill_(7)
        network[0].weight.data.fill_(ranks.rank)
        ranks.average_buffers_([network])
        seen["buffers"] = {name: buffer.tolist() for name, buffer in network.named_buffers()}
        seen["weight"] = network[0].weight.tolist()
        ranks.any(False)
        with process_group(ranks, CPU):  # as every arm of an experiment does, inside the experiment's own group
            seen["inside"] = ranks.sum_(torch.tensor(1)).item()
        seen["initialized"] = torch.distributed.is_initialized()
    seen["left"] = not torch.distributed.is_initialized()
    seen["pid"] = os.getpid()
    return seen


def fail_on(rank: int, ranks: Ranks) -> None:
    if ranks.rank == rank:
        raise DataError(f"data of {rank}")


def caught(action: Any) -> tuple[str, str]:
    try:
        action()
    except UserError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def test_two_ranks_are_two_processes(pair: list[dict[str, Any]]) -> None:
    assert pair[0]["pid"] != pair[1]["pid"]
    assert [each["initialized"] for each in pair] == [True, True]


@pytest.fixture(params=[0, 1], ids=["rank 0", "rank 1"])
def seen(request: pytest.FixtureRequest, pair: list[dict[str, Any]]) -> dict[str, Any]:
    """The result of one rank."""
    return {"rank": request.param, **pair[request.param]}


def test_sums_are_in_place(seen: dict[str, Any]) -> None:
    assert seen["sum"] == seen["sum in place"] == [3.0, 30.0]


def test_rank_0_decides(seen: dict[str, Any]) -> None:
    assert seen["decide"] == {"from": 0}
    assert seen["decide None"] is None


def test_rank_0_acts_alone_and_its_result_is_everybodys(seen: dict[str, Any]) -> None:
    assert seen["on_main"] == "rank 0"
    assert seen["on_main calls"] == (1 if seen["rank"] == 0 else 0)


def test_rank_0s_user_error_is_everybodys(seen: dict[str, Any]) -> None:
    assert seen["on_main error"] == ("OutputError", "disk of 0")


def test_everybody_acts_and_keeps_the_own_result(seen: dict[str, Any]) -> None:
    assert seen["on_all"] == f"own {seen['rank']}"


def test_a_user_error_on_one_rank_is_everybodys(seen: dict[str, Any]) -> None:
    assert seen["on_all error"] == ("DataError", "data of 1")
    assert seen["on_all errors"] == ("DataError", "data of 0")


def test_gathered_in_the_order_of_ranks(seen: dict[str, Any]) -> None:
    assert seen["gather"] == [("value", 0), ("value", 1)]


def test_any(seen: dict[str, Any]) -> None:
    assert seen["any"] == [False, True, True, True]


def test_floating_buffers_are_averaged_and_nothing_else(seen: dict[str, Any]) -> None:
    assert seen["buffers"]["0.running_mean"] == [0.5]
    assert seen["buffers"]["1.running_var"] == [4.0]
    assert seen["buffers"]["0.num_batches_tracked"] == 7
    assert seen["weight"] == [float(seen["rank"])]


def test_a_group_inside_a_group_is_the_same(seen: dict[str, Any]) -> None:
    assert seen["inside"] == 2
    assert seen["initialized"]


def test_a_group_is_left(seen: dict[str, Any]) -> None:
    assert seen["left"]


def test_a_failure_on_one_rank_does_not_leave_the_other_waiting() -> None:
    failed, other = run_ranks(fail_alone, timeout_s=300)
    assert str(failed.error) == "a bug"
    assert isinstance(other.error, RuntimeError)
    assert other.exit_code == 0


def fail_alone(ranks: Ranks) -> None:
    with process_group(ranks, CPU):
        ranks.any(False)
        if ranks.is_main:
            raise ValueError("a bug")
        ranks.any(False)
