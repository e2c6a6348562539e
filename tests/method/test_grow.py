from copy import deepcopy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from w2skd.errors import GrowthError, UsageError
from w2skd.method.channels import NEW, concatenated, in_blocks, interleaved, tiled
from w2skd.method.grow import Added, Plan, Repeated, apply_plan, fill_running_statistics, silent_branch


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Branch(nn.Module):
    """A residual branch."""

    def __init__(self, width, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=norm is nn.Identity), norm(width)

    def forward(self, images):
        return images + self.norm2(self.conv2(self.norm1(self.conv1(images)).relu()))


class FrozenNorm(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode=True):
        return super().train(False)


class Net(nn.Module):
    """Convolutions, blocks and a classifier of flattened maps, for images of 6 x 6 px."""

    def __init__(self, width, hidden=5, blocks=0, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Branch(width, norm) for _ in range(blocks)))
        self.hidden = nn.Linear(width * 36, hidden)
        self.head = nn.Linear(hidden, 4)

    def forward(self, images):
        out = self.blocks(self.norm(self.stem(images)).relu())
        return self.head(self.hidden(out.flatten(1)).relu())


def build(*args, **kwargs):
    torch.manual_seed(1)
    return Net(*args, **kwargs)


def randomise(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if "norm" in name and tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in name else torch.randn_like(tensor))
    return model


def wide_plan(channels=None, hidden=None):
    channels = interleaved(3, 8) if channels is None else channels
    hidden = interleaved(5, 7) if hidden is None else hidden
    return Plan(
        {
            "stem": Repeated("stem", outs=channels),
            "norm": Repeated("norm", outs=channels),
            "hidden": Repeated("hidden", outs=hidden, ins=in_blocks(channels, 36)),
            "head": Repeated("head", ins=hidden),
        }
    )


def images(seed=0, dtype=torch.float64):
    return torch.randn(4, 3, 6, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_equal(student, teacher):
    """Compare outputs in both modes and statistics after a pass in train mode, without changing the networks."""
    student, teacher = deepcopy(student).double(), deepcopy(teacher).double()
    for mode in (False, True):
        torch.testing.assert_close(student.train(mode)(images()), teacher.train(mode)(images()), rtol=0, atol=1e-9)
    torch.testing.assert_close(student.eval()(images()), teacher.eval()(images()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("channels", [interleaved(3, 8), tiled(3, 6), tiled(3, 7), torch.tensor([2, 0, 1, 1])])
def test_a_wider_network_computes_the_same(channels, generator):
    teacher, student = randomise(build(3)).double(), build(len(channels), 7).double()
    before = deepcopy(teacher.state_dict())
    growth = apply_plan(wide_plan(channels), student, teacher, generator)
    assert_equal(student, teacher)
    assert (growth.kind, growth.copied, growth.widened, growth.added) == ("grown", 2, 9, 0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_concatenated_layers(generator):
    teacher, student = nn.Linear(5, 3).double(), nn.Linear(11, 3).double()
    parts = [interleaved(2, 4), tiled(3, 7)]
    apply_plan(Plan({"": Repeated("", ins=concatenated(parts))}), student, teacher, generator)
    first, second = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    wide = torch.cat([first[:, parts[0]], second[:, parts[1]]], 1)
    torch.testing.assert_close(student(wide), teacher(torch.cat([first, second], 1)), rtol=0, atol=1e-12)


def test_new_inputs_have_no_effect_at_first(generator):
    teacher, student = nn.Linear(2, 3).double(), nn.Linear(4, 3).double()
    growth = apply_plan(Plan({"": Repeated("", ins=torch.tensor([0, NEW, 1, NEW]))}), student, teacher, generator)
    inputs = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(student(inputs), teacher(inputs[:, [0, 2]]))
    assert (growth.copied, growth.widened) == (1, 1)


def test_axes_and_factors(generator):
    """A transposed convolution, an embedding, and a layer whose outputs are scaled."""
    wide = interleaved(2, 4)
    teacher, student = nn.ConvTranspose2d(2, 2, 3).double(), nn.ConvTranspose2d(4, 4, 3).double()
    apply_plan(Plan({"": Repeated("", wide, wide, outs_axis=1, ins_axis=0)}), student, teacher, generator)
    maps = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(student(maps[:, wide]), teacher(maps)[:, wide], rtol=0, atol=1e-12)
    teacher, student = nn.Embedding(3, 2), nn.Embedding(3, 4)
    apply_plan(Plan({"weight": Repeated("weight", outs=wide, outs_axis=-1)}), student, teacher, generator)
    assert torch.equal(student.weight, teacher.weight[:, wide])
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    growth = apply_plan(Plan({"": Repeated("", factor=2.0)}), student, teacher, generator)
    assert torch.equal(student(torch.eye(2)), 2 * teacher(torch.eye(2)))
    assert growth.kind == "grown"


def test_what_is_not_repeated_is_copied_bit_for_bit(generator):
    teacher, student = randomise(build(3)), build(4)
    growth = apply_plan(wide_plan(interleaved(3, 4), interleaved(5, 5)), student, teacher, generator)
    assert interleaved(3, 4).tolist() == [0, 0, 1, 2]
    assert torch.equal(student.stem.weight[1:], teacher.stem.weight)
    assert torch.equal(student.hidden.weight[:, 72:], teacher.hidden.weight[:, 36:])
    assert torch.equal(student.hidden.bias, teacher.hidden.bias)
    assert growth.copied == 4  # both heads, the bias of the hidden layer and the count of batches


def test_the_same_network_is_a_warm_start(generator):
    teacher, student = randomise(build(3, blocks=1)), build(3, blocks=1)
    growth = apply_plan(Plan({"": Repeated("")}, ("copied",)), student, teacher, generator)
    assert growth.kind == "warm start"
    assert growth.copied == len(teacher.state_dict())
    assert growth.new_norms == ()
    assert growth.notes == ("copied",)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


def test_weights_take_the_students_precision(generator):
    teacher, student = randomise(build(3)), build(8, 7).bfloat16()
    apply_plan(wide_plan(), student, teacher, generator)
    assert student.stem.weight.dtype == torch.bfloat16
    torch.testing.assert_close(student.stem.weight.float(), teacher.stem.weight[interleaved(3, 8)], rtol=0.01, atol=0)


def deep_plan(student):
    """A plan for a network with one more block."""
    norm = None if isinstance(student.blocks[1].norm2, nn.Identity) else "blocks.1.norm2"
    return Plan({"": Repeated(""), "blocks.1": Added(), **silent_branch(student, "blocks.1.conv2", norm)})


def deeper(norm):
    teacher, student = build(4, blocks=1, norm=norm), build(4, blocks=2, norm=norm)
    return randomise(teacher).double(), student.double()


NORMS = {
    "none": nn.Identity,
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(2, channels),
    "frozen": FrozenNorm,
    "torchvision's frozen": FrozenBatchNorm2d,
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_added_branch_starts_as_the_identity_and_trains(norm, optimizer, generator):
    teacher, student = deeper(norm)
    growth = apply_plan(deep_plan(student), student, teacher, generator)
    assert_equal(student, teacher)
    assert growth.added == len(student.blocks[1].state_dict())
    start = deepcopy(student.state_dict())
    train(student, optimizer, steps=3)  # the first moves what starts at zero, the second what is behind it
    for name, parameter in student.blocks[1].named_parameters(prefix="blocks.1"):
        moved = (parameter - start[name]).abs().max() > 1e-6
        assert moved == parameter.requires_grad, name


def test_a_norm_without_scale_cannot_end_an_added_branch():
    _, student = deeper(lambda channels: nn.BatchNorm2d(channels, affine=False))
    with pytest.raises(GrowthError, match=r"blocks.1.norm2 has no trained scale.*use a norm with a scale"):
        deep_plan(student)


def train(model, optimizer, steps):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer == "sgd":
        rule = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    else:
        rule = torch.optim.AdamW(parameters, lr=1e-3)
    model.train()
    labels = torch.tensor([0, 1, 2, 3])
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(images(step)), labels)
        rule.zero_grad()
        loss.backward()
        rule.step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_copies_part_in_training(optimizer, generator):
    teacher, student = randomise(build(3)).double(), build(6, 10).double()
    apply_plan(wide_plan(interleaved(3, 6), interleaved(5, 10)), student, teacher, generator)
    assert torch.equal(student.stem.weight[::2], student.stem.weight[1::2])
    train(student, optimizer, steps=10)
    for copies in (student.stem.weight, student.norm.weight, student.hidden.weight):
        apart = (copies[::2] - copies[1::2]).flatten(1).norm(dim=1) if copies.dim() > 1 else copies[::2] - copies[1::2]
        assert (apart.abs() > 1e-5).all()


def test_tensors_that_the_plan_misses_are_refused(generator):
    teacher, student = build(3), build(8, 7)
    rules = dict(wide_plan().rules)
    del rules["norm"]
    before = deepcopy(student.state_dict())
    with pytest.raises(GrowthError, match=r"student: the teacher has no counterpart of norm.weight"):
        apply_plan(Plan(rules), student, teacher, generator)
    rules["norm"] = Added()
    with pytest.raises(
        GrowthError, match=r"teacher: .* no counterpart of 5 tensors, the first of which is norm.weight: .*large"
    ):
        apply_plan(Plan(rules), student, teacher, generator)
    rules["norm"] = Repeated("bn")
    with pytest.raises(GrowthError, match=r"norm.weight should come from bn.weight, which the teacher does not have"):
        apply_plan(Plan(rules), student, teacher, generator)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert GrowthError.exit_code == 2
    assert issubclass(GrowthError, UsageError)


def test_wrong_sizes_are_refused(generator):
    with pytest.raises(
        GrowthError, match=r"stem.weight has shape \[9, .*stem.weight of the teacher gives \[8, 3, 3, 3\]"
    ):
        apply_plan(wide_plan(), build(9, 7), build(3), generator)
    with pytest.raises(GrowthError, match="teacher: stem has 4 channels on axis 0, not 3"):
        apply_plan(wide_plan(), build(8, 7), build(4), generator)


def test_a_value_for_an_unknown_tensor_is_a_bug(generator):
    with pytest.raises(AssertionError, match=r"does not have.*blocks.0.gain"):
        apply_plan(Plan({"": Repeated(""), "blocks.0": Added({"gain": 0.0})}), build(3, blocks=1), build(3), generator)


def grown(norm=nn.BatchNorm2d, momentum=0.1):
    teacher, student = deeper(norm)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    growth = apply_plan(deep_plan(student), student, teacher, torch.Generator().manual_seed(0))
    return student, growth


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_new_norms_get_the_average_over_the_batches(momentum):
    student, growth = grown(momentum=momentum)
    assert growth.new_norms == ("blocks.1.norm1", "blocks.1.norm2")
    batches, seen = iter(range(20)), []
    probe = student.blocks[1].norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fill_running_statistics(student, growth.new_norms, lambda: student(images(next(batches))), passes=20)
    probe.remove()
    norm = student.blocks[1].norm1
    assert len(seen) == norm.num_batches_tracked == 20
    assert not any(each.requires_grad for each in seen)
    means = torch.stack([each.mean((0, 2, 3)) for each in seen])
    variances = torch.stack([each.transpose(0, 1).flatten(1).var(1) for each in seen])
    torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_filling_leaves_all_else_alone(momentum):
    student, growth = grown(momentum=momentum)
    student.blocks[0].eval()
    before = deepcopy(student.state_dict())
    torch.manual_seed(7)
    draws = torch.get_rng_state()

    def forward():
        torch.rand(3)  # as dropout would
        return student(images())

    fill_running_statistics(student, growth.new_norms, forward, passes=3)
    assert torch.equal(torch.get_rng_state(), draws)
    assert [module.training for module in (student, student.blocks[0].norm1, student.norm)] == [True, False, True]
    assert {module.momentum for module in student.modules() if isinstance(module, nn.BatchNorm2d)} == {momentum}
    assert all(parameter.grad is None for parameter in student.parameters())
    filled = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in student.state_dict().items():
        is_new = name.startswith(growth.new_norms) and name.endswith(filled)
        assert torch.equal(value, before[name]) != is_new, name


def test_frozen_norms_inside_an_added_branch_are_filled_and_the_last_one_keeps_zero_at_zero():
    student, growth = grown(FrozenNorm)
    assert growth.new_norms == ("blocks.1.norm1",)
    expected = student(images(50))
    fill_running_statistics(student, growth.new_norms, lambda: student(images()), passes=1)
    inside = student.blocks[1].conv1(student.blocks[0](student.norm(student.stem(images())).relu()))
    normalised = student.blocks[1].norm1(inside)
    assert normalised.mean().abs() < 1e-6
    assert abs(normalised.std() - 1) < 0.01
    assert not student.blocks[1].norm1.training
    torch.testing.assert_close(student(images(50)), expected, rtol=0, atol=1e-12)


def test_an_error_in_a_pass_restores_everything():
    student, growth = grown()
    before = deepcopy(student.eval().state_dict())

    def forward():
        student(images())
        raise RuntimeError("no more batches")

    with pytest.raises(RuntimeError, match="no more batches"):
        fill_running_statistics(student, growth.new_norms, forward, passes=2)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert not any(module.training for module in student.modules())


def test_nothing_to_fill_runs_nothing():
    fill_running_statistics(build(3), (), lambda: pytest.fail("a pass"), passes=20)
