import json
import os

import pytest
import torch

from w2skd.errors import DeviceError
from w2skd.platform import device as module
from w2skd.platform.device import describe_environment, float32_math, open_device, seed_generators
from w2skd.platform.ranks import Ranks

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_gpu_the_device_is_the_cpu(name: str) -> None:
    assert open_device(name, Ranks()) == CPU


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_a_missing_gpu_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"^--device {name}: this machine has no GPU$"):
        open_device(name, Ranks())


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu cpu", "meta", "mps", "cuda:-1"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"^--device {name}: unknown; use auto, cpu, cuda or cuda:N$"):
        open_device(name, Ranks())


def test_one_gpu_for_several_ranks_is_refused() -> None:
    with pytest.raises(
        DeviceError, match=r"^--device cuda:0: all 4 ranks would share it; use cuda for one GPU per rank$"
    ):
        open_device("cuda:0", Ranks(rank=1, world=4, local_rank=1))


def test_generators_are_seeded_as_torch_would() -> None:
    seed_generators(CPU, 12345)
    ours = torch.rand(4)
    torch.manual_seed(12345)
    assert torch.equal(ours, torch.rand(4))


@pytest.mark.parametrize(("name", "local_rank", "index"), [("auto", 0, 0), ("cuda", 1, 1), ("cuda:1", 0, 1)])
def test_each_rank_takes_its_own_gpu(name: str, local_rank: int, index: int, two_gpus: list[int]) -> None:
    device = open_device(name, Ranks(rank=local_rank, world=local_rank + 1, local_rank=local_rank))
    assert device == torch.device("cuda", index)
    assert two_gpus == [index]


@pytest.mark.usefixtures("two_gpus")
def test_opening_a_gpu_prepares_deterministic_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: found.append(os.environ["CUBLAS_WORKSPACE_CONFIG"]))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")  # the tests set it themselves
    open_device("cuda", Ranks())
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    open_device("cuda", Ranks())
    assert found == [":4096:8", ":16:8"]


def test_a_gpu_index_out_of_range_is_refused_with_the_valid_range(two_gpus: list[int]) -> None:
    with pytest.raises(DeviceError, match=r"^--device cuda:2: this machine has only GPUs 0 to 1$"):
        open_device("cuda:2", Ranks())
    with pytest.raises(DeviceError, match="only GPUs 0 to 1"):
        open_device("auto", Ranks(rank=2, world=3, local_rank=2))
    assert two_gpus == []


def test_the_environment_lists_what_a_result_depends_on() -> None:
    facts = describe_environment(CPU, Ranks(world=3))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert (facts["device"], facts["ranks"], facts["threads"]) == ("cpu", 3, torch.get_num_threads())
    assert "cores" in facts["device_name"]
    assert facts.keys() >= {"w2skd", "python", "torchvision", "commit"}


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert module._commit() is None


def test_seeding_gives_what_torch_itself_gives() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_generators(CPU, 5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_inside_the_block_only(allowed: bool) -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = settings()
    with float32_math(tf32=allowed):
        assert settings() == (allowed, allowed)
    assert settings() == before


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_tf32_is_set_although_a_plugin_used_torchs_other_interface_for_it(precision: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        matmul.fp32_precision = precision
        for allowed in (False, True):
            with float32_math(tf32=allowed):
                assert matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
            assert matmul.fp32_precision == precision
    finally:
        matmul.allow_tf32 = before


def test_the_environment_is_described_although_a_plugin_set_the_precision_of_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    before = torch.backends.cudnn.allow_tf32
    try:
        with float32_math(tf32=False):
            torch.backends.cudnn.conv.fp32_precision = "tf32"
            assert describe_environment(torch.device("cuda", 0), Ranks())["tf32"] is True
    finally:
        torch.backends.cudnn.allow_tf32 = before
