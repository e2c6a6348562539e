import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.training.clock import Clock

CPU = torch.device("cpu")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)
    )


def images(seed=1):
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class ManyOutputs(nn.Module):
    def forward(self, x, scales):
        return {"pair": Pair(x + 1, x * 2), "list": [x * scale for scale in scales], "tuple": (x, None, "text")}


def test_calls_repeat_and_do_not_change_the_state():
    model = network().train()
    before = state_fingerprint(model)
    teacher = FrozenTeacher(model, device=CPU)
    first, second = teacher(images()), teacher(images())
    assert torch.equal(first, second)  # dropout would make them differ
    assert state_fingerprint(teacher.model) == before  # BatchNorm would have updated its buffers
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_the_output_is_that_of_eval_mode():
    expected = network().eval()(images()).detach()
    assert torch.equal(FrozenTeacher(network(), device=CPU)(images()), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "loss",
    [
        functional.mse_loss,
        functional.smooth_l1_loss,
        lambda s, t: functional.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True),
        lambda s, t: (s * t).sum(),  # saves the teacher's tensor itself
    ],
)
def test_outputs_can_be_saved_for_a_backward(loss, precision):
    student = network(2)
    answer = FrozenTeacher(network(), device=CPU, precision=precision)(images())
    assert not answer.is_inference()
    assert not answer.requires_grad
    loss(student(images()), answer.float()).backward()
    assert student[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("student_precision", ["fp32", "bf16"])
@pytest.mark.parametrize("teacher_precision", ["fp32", "bf16", "fp16"])
def test_the_teachers_autocast_is_its_own(student_precision, teacher_precision):
    student = network(2)

    def gradient(teacher_precision):
        teacher = FrozenTeacher(network(), device=CPU, precision=teacher_precision)
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=student_precision == "bf16"):
            student(images())  # fills the cache of cast weights
            answer = teacher(images())
            outputs = student(images())
        assert answer.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[teacher_precision]
        assert outputs.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[student_precision]
        functional.mse_loss(outputs.float(), answer.float()).backward()
        return answer, student[0].weight.grad

    answer, grad = gradient(teacher_precision)
    exact, exact_grad = gradient("fp32")
    torch.testing.assert_close(answer.float(), exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(grad, exact_grad, atol=0.05, rtol=0.1)
    assert grad.abs().sum() > 0


def test_a_module_can_be_teacher_then_student_in_one_autocast():
    # A cast weight cached in inference mode would break the backward pass of its next user.
    layer = nn.Linear(4, 3)
    teacher = FrozenTeacher(layer, device=CPU, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16):
        teacher(torch.ones(2, 4))
        layer.requires_grad_(True)
        layer(torch.ones(2, 4)).float().sum().backward()
    assert layer.weight.grad is not None


def test_nested_outputs_keep_their_structure_and_share_no_memory_with_the_input():
    x = torch.arange(3.0)
    answer = FrozenTeacher(ManyOutputs(), device=CPU)(x, [2, 3])
    assert isinstance(answer["pair"], Pair)
    assert torch.equal(answer["pair"].second, x * 2)
    assert [part.tolist() for part in answer["list"]] == [[0, 2, 4], [0, 3, 6]]
    assert answer["tuple"][1:] == (None, "text")
    assert answer["tuple"][0].data_ptr() != x.data_ptr()
    assert not any(part.is_inference() for part in (*answer["pair"], *answer["list"], answer["tuple"][0]))


def test_channels_last_changes_the_format_and_not_the_output():
    plain = FrozenTeacher(network(), device=CPU)
    last = FrozenTeacher(network(), device=CPU, channels_last=True)
    assert last.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    last.model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.testing.assert_close(last(images()), plain(images()))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert state_fingerprint(last.model) == state_fingerprint(plain.model)


@pytest.mark.parametrize("mode", [True, False])
def test_train_is_refused(mode):
    teacher = FrozenTeacher(network(), device=CPU)
    with pytest.raises(RuntimeError, match="no train mode"):
        teacher.train(mode)
    assert teacher.eval() is teacher


def test_a_module_set_to_train_mode_is_noticed():
    teacher = FrozenTeacher(network(), device=CPU)
    teacher.model[1].train()
    with pytest.raises(AssertionError, match="train mode"):
        teacher(images())


def test_it_is_not_part_of_a_module_that_has_it_as_attribute():
    holder = nn.Linear(2, 2)
    holder.teacher = FrozenTeacher(network(), device=CPU)
    assert set(holder.state_dict()) == {"weight", "bias"}
    assert len(list(holder.parameters())) == 2


def test_it_is_freed_with_its_only_reference():
    teacher = FrozenTeacher(network(), device=CPU, clock=Clock())
    answer = teacher(images())
    gone = [weakref.ref(teacher), weakref.ref(teacher.model), weakref.ref(teacher.model[0].weight)]
    gc.disable()  # must not depend on the garbage collector
    try:
        del teacher
        assert [reference() for reference in gone] == [None] * 3
    finally:
        gc.enable()
    assert answer.isfinite().all()


def test_the_clock_counts_its_time():
    ticks = iter(range(100))
    clock = Clock(now=lambda: float(next(ticks)))
    teacher = FrozenTeacher(network(), device=CPU, clock=clock)
    with clock.segment("train"):
        teacher(images())
    teacher.settle()
    seconds = clock.read()
    assert seconds["teacher"] == 1.0
    assert seconds["train"] == 2.0


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="measures with CUDA events")
def test_cuda_events_move_time_from_train_to_teacher():
    clock = Clock()
    teacher = FrozenTeacher(network(), device="cuda", clock=clock)
    with clock.segment("train"):
        for _ in range(3):
            teacher(images().cuda())
        before = clock.read()
        teacher.settle()
    after = clock.read()
    assert before["teacher"] == 0.0
    assert after["teacher"] > 0.0
    assert 0.0 < after["train"] + after["teacher"] - before["train"] < 1.0


def test_the_fingerprint_covers_values_names_dtypes_and_shapes():
    def with_buffer(name, tensor):
        module = nn.Module()
        module.register_buffer(name, tensor)
        return state_fingerprint(module)

    prints = [
        with_buffer("a", torch.zeros(4)),
        with_buffer("b", torch.zeros(4)),
        with_buffer("a", torch.zeros(2, 2)),
        with_buffer("a", torch.zeros(4, dtype=torch.int32)),
        with_buffer("a", torch.tensor([0.0, 0.0, 0.0, -0.0])),
        with_buffer("a", torch.zeros(())),
        with_buffer("a", torch.zeros(0)),
        with_buffer("a", torch.zeros(4, dtype=torch.bfloat16)),
        with_buffer("a", torch.zeros(4, dtype=torch.bool)),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == with_buffer("a", torch.zeros(4))
    assert len(prints[0]) == 64


class FakeEvent:
    """A CUDA event on a fake clock that advances by one millisecond per record."""

    now_ms = 0.0

    def __init__(self, **_: object) -> None:
        self.at_ms = 0.0

    def record(self) -> None:
        FakeEvent.now_ms += 1
        self.at_ms = FakeEvent.now_ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.at_ms - self.at_ms


def test_time_between_events_is_taken_from_the_segment_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping of CUDA events, with fake events so that it runs without a GPU."""
    clock = Clock(now=lambda: 0.0)
    teacher = FrozenTeacher(nn.Linear(2, 2), device="cpu", clock=clock)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(teacher, "_device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    for segment in ("compile", "train", "train"):
        with clock.segment(segment):
            teacher(torch.ones(1, 2))
    teacher(torch.ones(1, 2))  # outside of all segments: no time to move
    assert clock.read()["teacher"] == 0
    teacher.settle()
    seconds = clock.read()
    assert (seconds["teacher"], seconds["train"], seconds["compile"]) == (0.003, -0.002, -0.001)
    teacher.settle()
    assert clock.read() == seconds
