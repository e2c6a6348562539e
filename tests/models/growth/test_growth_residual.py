from functools import partial

import pytest
import torch
from growing import assert_same_function, cross_entropy, generator, pictures, randomise, train
from timm.layers import DropPath
from timm.models import resnet as of_timm
from torch import nn
from torchvision.models import get_model
from torchvision.models import resnet as of_torchvision
from torchvision.ops import FrozenBatchNorm2d

from w2skd.errors import GrowthError
from w2skd.models.catalog import build_classifier
from w2skd.models.cifar_resnet import CifarResNet
from w2skd.models.growth.catalog import grow
from w2skd.models.growth.residual import plan_residual
from w2skd.models.wide_resnet import WideResNet

group_norm = partial(nn.GroupNorm, 4)


def slim(block, layers, width=64, norm=nn.BatchNorm2d, classes=3, **options):
    """torchvision's ResNet, narrow if its blocks allow it."""
    options |= {"width_per_group": width} if block is of_torchvision.Bottleneck else {}
    return of_torchvision.ResNet(block, layers, classes, norm_layer=norm, **options)


def tiny_timm(block, layers, width=8, classes=3, **options):
    channels = tuple(width * factor for factor in (1, 2, 4, 8))
    return of_timm.ResNet(block, layers, classes, stem_width=8, channels=channels, **options)


basic = partial(slim, of_torchvision.BasicBlock)
bottleneck = partial(slim, of_torchvision.Bottleneck)
of_timm_basic = partial(tiny_timm, of_timm.BasicBlock)
of_timm_bottleneck = partial(tiny_timm, of_timm.Bottleneck)

DEEPER = {
    "cifar_resnet": (lambda: CifarResNet(14, 3), lambda: CifarResNet(26, 3)),
    "wide_resnet": (lambda: WideResNet(10, 2, 3), lambda: WideResNet(22, 2, 3)),
    "torchvision basic": (lambda: basic([1, 1, 1, 1]), lambda: basic([1, 2, 1, 2])),
    "torchvision bottleneck": (lambda: bottleneck([1, 1, 1, 1], 4), lambda: bottleneck([1, 3, 2, 1], 4)),
    "torchvision frozen": (
        lambda: basic([1, 1, 1, 1], norm=FrozenBatchNorm2d),
        lambda: basic([2, 1, 1, 2], norm=FrozenBatchNorm2d),
    ),
    "torchvision group norm": (
        lambda: bottleneck([1, 1, 1, 1], 4, group_norm),
        lambda: bottleneck([2, 1, 1, 1], 4, group_norm),
    ),
    "resnext": (
        lambda: bottleneck([1, 1, 1, 1], 2, groups=4),
        lambda: bottleneck([1, 2, 1, 1], 2, groups=4),
    ),
    "timm basic": (lambda: of_timm_basic([1, 1, 1, 1]), lambda: of_timm_basic([1, 2, 2, 1])),
    "timm deep stem": (
        lambda: of_timm_bottleneck([1, 1, 1, 1], stem_type="deep", avg_down=True),
        lambda: of_timm_bottleneck([2, 1, 2, 1], stem_type="deep", avg_down=True),
    ),
}
WIDER = {
    "wide_resnet": (lambda: WideResNet(10, 2, 3), lambda: WideResNet(10, 4, 3)),
    "wide_resnet by half": (lambda: WideResNet(10, 2, 3), lambda: WideResNet(10, 3, 3)),
    "torchvision": (lambda: bottleneck([1, 1, 1, 1], 4), lambda: bottleneck([1, 1, 1, 1], 8)),
    "torchvision by half": (lambda: bottleneck([1, 1, 1, 1], 4), lambda: bottleneck([1, 1, 1, 1], 6)),
    "torchvision group norm": (
        lambda: bottleneck([1, 1, 1, 1], 4, group_norm),
        lambda: bottleneck([1, 1, 1, 1], 8, group_norm),
    ),
    "timm": (lambda: of_timm_basic([1, 1, 1, 1]), lambda: of_timm_basic([1, 1, 1, 1], 12)),
}
BOTH = {
    "wide_resnet": (lambda: WideResNet(10, 2, 3), lambda: WideResNet(16, 4, 3)),
    "torchvision": (lambda: bottleneck([1, 1, 1, 1], 4), lambda: bottleneck([1, 2, 1, 2], 8)),
}
ALL = {
    f"{name}, {how}": pair
    for how, pairs in (("deeper", DEEPER), ("wider", WIDER), ("both", BOTH))
    for name, pair in pairs.items()
}


def pair(builds):
    torch.manual_seed(0)
    teacher, student = builds
    return randomise(teacher()).double(), student().double()


def by_name(pairs):
    return pytest.mark.parametrize("builds", pairs.values(), ids=pairs)


@by_name(ALL)
def test_the_student_computes_the_same_as_the_teacher(builds):
    teacher, student = pair(builds)
    growth = grow(student, teacher, generator())
    assert growth.kind == "grown"
    assert_same_function(student, teacher)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@by_name(DEEPER)
def test_added_blocks_train(builds, optimizer):
    """Two steps suffice: the first moves the tensors that start at zero, the second the layers before them."""
    teacher, student = pair(builds)
    grow(student, teacher, generator())
    added = {name for name, _ in student.named_parameters()} - {name for name, _ in teacher.named_parameters()}
    moved = train(student, cross_entropy, optimizer, steps=2)
    assert added & set(moved)
    assert {name: float(moved[name]) for name in added & set(moved) if moved[name] < 1e-8} == {}


def parted(builds, optimizer, steps=3):
    """Train and return, for every layer with twice the channels, the share of pairs of copies that move apart."""
    teacher, student = pair(builds)
    grow(student, teacher, generator())
    sources = dict(teacher.named_modules())
    layers = {
        name: module
        for name, module in student.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == 2 * sources[name].out_channels
    }
    starts = {name: module.weight.detach().clone() for name, module in layers.items()}
    train(student, cross_entropy, optimizer, steps)
    shares = {}
    for name, module in layers.items():
        move = (module.weight - starts[name]).flatten(1).detach()
        apart = (move[::2] - move[1::2]).norm(dim=1) > 0.01 * move[::2].norm(dim=1)
        shares[name] = apart.double().mean().item()
    assert len(shares) > 4
    return shares


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@by_name({name: WIDER[name] for name in ("wide_resnet", "torchvision", "torchvision group norm")})
def test_copies_part(builds, optimizer):
    """Except copies whose ReLU outputs only zeros, as happens at random in an untrained network."""
    assert min(parted(builds, optimizer).values()) > 0.6


def test_copies_with_equal_shares_would_not_part(monkeypatch):
    def equal(outs, ins, generator):
        return torch.full((outs, len(ins)), 0.5, dtype=torch.float64)

    monkeypatch.setattr("w2skd.method.grow.fan_in_shares", equal)
    assert max(parted(WIDER["torchvision"], "adamw").values()) < 0.3


def test_copies_may_start_equal():
    """Copies whose layer reads channels that are not repeated differ only after training."""
    teacher, student = pair(WIDER["torchvision"])
    grow(student, teacher, generator())
    first, second = student.layer1[0].conv1.weight, student.layer1[0].conv2.weight
    assert torch.equal(first[::2], first[1::2])
    assert not torch.equal(second[::2], second[1::2])


def test_the_real_resnet34_from_resnet18():
    torch.manual_seed(0)
    teacher, student = get_model("resnet18", num_classes=4), get_model("resnet34", num_classes=4)
    growth = grow(student, randomise(teacher), generator())
    images = pictures(examples=1, side=32, dtype=torch.float32)
    with torch.no_grad():
        expected = teacher.eval()(images)
        torch.testing.assert_close(student.eval()(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    assert growth.notes == ("blocks per stage: 2, 2, 2, 2 became 3, 4, 6, 3",)
    assert len(growth.new_norms) == 2 * 8
    assert growth.new_norms[:2] == ("layer1.2.bn1", "layer1.2.bn2")
    assert (growth.copied, growth.widened, growth.added) == (len(teacher.state_dict()), 0, 8 * 12)


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("resnet50", "resnet101"),
        ("resnet101", "resnet152"),
        ("resnet50", "wide_resnet50_2"),
        ("wide_resnet50_2", "wide_resnet101_2"),
        ("timm:resnet18", "timm:resnet34"),
        ("timm:resnet50d", "timm:resnet101d"),
        ("cifar_resnet20", "cifar_resnet56"),
    ],
)
def test_pairs_of_real_models_fit(small, large):
    """The networks are on the meta device, so that only names and shapes count."""
    with torch.device("meta"):
        teacher, student = (
            build_classifier(name, 5) if ":" in name or "cifar" in name else get_model(name) for name in (small, large)
        )
    plan = plan_residual(student, teacher)
    assert plan.notes


def test_the_same_size_is_a_warm_start():
    teacher, student = pair((lambda: CifarResNet(14, 3), lambda: CifarResNet(14, 3)))
    growth = grow(student, teacher, generator())
    assert growth.kind == "warm start"
    assert (growth.widened, growth.added, growth.new_norms) == (0, 0, ())
    assert_same_function(student, teacher, rtol=0, atol=0)


def test_notes_on_depth_and_width():
    teacher, student = pair(BOTH["wide_resnet"])
    growth = grow(student, teacher, generator())
    assert growth.notes == ("blocks per stage: 1, 1, 1 became 2, 2, 2", "repeated channels in 16 layers")
    assert growth.new_norms == tuple(f"stage{stage}.1.norm{norm}" for stage in (1, 2, 3) for norm in (1, 2))


REFUSED = {
    "another type of block": (
        lambda: basic([1, 1, 1, 1]),
        lambda: bottleneck([1, 1, 1, 1]),
        "layer1 has blocks of type Bottleneck, the teacher's BasicBlock: .*a ResNet-18 can become a ResNet-34",
    ),
    "classes": (
        lambda: CifarResNet(8, 10),
        lambda: CifarResNet(14, 100),
        "it has 100 classes, the teacher 10: use a teacher with the student's classes",
    ),
    "shallower": (
        lambda: CifarResNet(14, 3),
        lambda: CifarResNet(8, 3),
        "stage1 has 1 blocks, the teacher's 2: the student must be at least as deep",
    ),
    "narrower": (
        lambda: WideResNet(10, 4, 3),
        lambda: WideResNet(16, 2, 3),
        "stage1.0.conv1: its width is 32, less than the teacher's 64: the student must be at least as wide",
    ),
    "without projection": (
        lambda: WideResNet(10, 1, 3),
        lambda: WideResNet(10, 2, 3),
        "the teacher has no stage1.0.projection.* use a wider teacher, or a student of the teacher's width",
    ),
    "statistics of groups": (
        lambda: bottleneck([1, 1, 1, 1], 4, partial(nn.GroupNorm, 2)),
        lambda: bottleneck([1, 1, 1, 1], 6, partial(nn.GroupNorm, 2)),
        "bn1: its width is 6, not a multiple of the teacher's 4: use 4 or 8",
    ),
    "dilation": (
        lambda: bottleneck([1, 1, 1, 1], 4),
        lambda: bottleneck([1, 1, 1, 2], 4, replace_stride_with_dilation=[False, False, True]),
        "layer4.0.conv2 has stride .*1, 1.*, the teacher's .*2, 2.*: use models of one family",
    ),
    "convolutions in groups": (
        lambda: bottleneck([1, 1, 1, 1], 2, groups=4),
        lambda: bottleneck([1, 1, 1, 1], 4, groups=4),
        "layer1.0.conv2, a grouped convolution, cannot be widened: use a student of the teacher's width",
    ),
    "timm's attention": (
        lambda: of_timm_basic([1, 1, 1, 1], block_args={"attn_layer": "se"}),
        lambda: of_timm_basic([2, 1, 1, 1], block_args={"attn_layer": "se"}),
        "layer1.0 has channel attention: only timm's plain ResNets can be grown",
    ),
    "another activation": (
        lambda: of_timm_basic([1, 1, 1, 1], act_layer=nn.SiLU),
        lambda: of_timm_basic([2, 1, 1, 1], act_layer=nn.SiLU),
        "act1 is a SiLU, so an added block cannot start as the identity: use ReLU",
    ),
    "two poolings": (
        lambda: of_timm_basic([1, 1, 1, 1], global_pool="catavgmax"),
        lambda: of_timm_basic([2, 1, 1, 1], global_pool="catavgmax"),
        "its head reads concatenated poolings",
    ),
}


@pytest.mark.parametrize(("teacher", "student", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(teacher, student, message):
    student = student()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(GrowthError, match=message):
        grow(student, teacher(), generator())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_stochastic_depth_may_differ():
    torch.manual_seed(0)
    student = of_timm_basic([2, 1, 1, 1], drop_path_rate=0.3)
    teacher = randomise(of_timm_basic([1, 1, 1, 1], drop_path_rate=0.1))
    assert any(isinstance(module, DropPath) for module in teacher.modules())
    grow(student, teacher, generator())
    student, teacher = student.double().eval(), teacher.double().eval()
    torch.testing.assert_close(student(pictures()), teacher(pictures()), rtol=0, atol=1e-9)
