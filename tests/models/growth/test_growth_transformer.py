from functools import partial

import pytest
import timm
import torch
from growing import assert_same_function, gaps_between_copies, generator, pictures, randomise, train
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import ConvStemConfig
from torchvision.models.vision_transformer import VisionTransformer as OfTorchvision

from w2skd.errors import GrowthError
from w2skd.models.growth.catalog import grow
from w2skd.models.vit import CifarVit

SIDE_PX = 16


def of_timm(width=12, depth=2, heads=3, build=VisionTransformer, **options):
    return build(SIDE_PX, 8, num_classes=3, embed_dim=width, depth=depth, num_heads=heads, **options)


def of_torchvision(width=12, depth=2, heads=3, hidden=20, **options):
    return OfTorchvision(SIDE_PX, 8, depth, heads, width, hidden, num_classes=3, **options)


def of_cifar(width=12, depth=2, heads=3, hidden=20):
    """A CIFAR ViT of another size."""
    before = {name: getattr(CifarVit, name) for name in ("WIDTH", "DEPTH", "HEADS", "MLP_WIDTH")}
    try:
        CifarVit.WIDTH, CifarVit.DEPTH, CifarVit.HEADS, CifarVit.MLP_WIDTH = width, depth, heads, hidden
        return CifarVit(3, SIDE_PX)
    finally:
        for name, value in before.items():
            setattr(CifarVit, name, value)


def pair(small, large):
    """A teacher with random weights, norms and biases, and a freshly initialised student."""
    torch.manual_seed(0)
    teacher = randomise(small()).double()
    with torch.no_grad():
        for parameter in teacher.parameters():
            if parameter.dim() > 1:  # embeddings and some heads start at or near zero
                parameter.add_(torch.randn_like(parameter) / 4)
    return teacher, large().double()


def classify(model, side_px=SIDE_PX):
    return model(pictures(side=side_px, dtype=next(model.parameters()).dtype))


distilled = partial(of_timm, build=VisionTransformerDistilled)
stem = [ConvStemConfig(6, 3, 2), ConvStemConfig(8, 3, 4)]

WIDER = {
    "timm": (of_timm, partial(of_timm, 24, heads=6)),
    "timm, three times": (of_timm, partial(of_timm, 36, heads=9)),
    "timm, other ratio of the MLP": (of_timm, partial(of_timm, 24, heads=6, mlp_ratio=3)),
    "timm, no biases": (partial(of_timm, qkv_bias=False), partial(of_timm, 24, heads=6, qkv_bias=False)),
    "timm, norm of queries and keys": (partial(of_timm, qk_norm=True), partial(of_timm, 24, heads=6, qk_norm=True)),
    "timm, layer scale": (partial(of_timm, init_values=0.1), partial(of_timm, 24, heads=6, init_values=1e-5)),
    "timm, mean of patches": (
        partial(of_timm, global_pool="avg", class_token=False, pre_norm=True),
        partial(of_timm, 24, heads=6, global_pool="avg", class_token=False, pre_norm=True),
    ),
    "timm, registers": (
        partial(of_timm, reg_tokens=2, no_embed_class=True),
        partial(of_timm, 24, heads=6, reg_tokens=2, no_embed_class=True),
    ),
    "timm, distilled": (distilled, partial(distilled, 24, heads=6)),
    "torchvision": (of_torchvision, partial(of_torchvision, 24, heads=6, hidden=33)),
    "torchvision, more before the head": (
        partial(of_torchvision, representation_size=7),
        partial(of_torchvision, 24, heads=6, representation_size=7),
    ),
    "torchvision, convolutions first": (
        partial(of_torchvision, conv_stem_configs=stem),
        partial(of_torchvision, 24, heads=6, conv_stem_configs=stem),
    ),
    "cifar": (of_cifar, partial(of_cifar, 24, heads=6, hidden=40)),
}
DEEPER = {
    "timm": (of_timm, partial(of_timm, depth=4)),
    "timm, layer scale": (partial(of_timm, init_values=0.1), partial(of_timm, depth=3, init_values=1e-5)),
    "timm, distilled": (distilled, partial(distilled, depth=3)),
    "timm, attention pooling": (
        partial(of_timm, global_pool="map", class_token=False),
        partial(of_timm, depth=3, global_pool="map", class_token=False),
    ),
    "torchvision": (of_torchvision, partial(of_torchvision, depth=3)),
    "cifar": (of_cifar, partial(of_cifar, depth=4)),
}
BOTH = {
    "timm": (of_timm, partial(of_timm, 24, 3, 6)),
    "torchvision": (of_torchvision, partial(of_torchvision, 24, 3, 6, 40)),
    "cifar": (of_cifar, partial(of_cifar, 24, 3, 6, 25)),
}
OTHER = {"more hidden units": (of_cifar, partial(of_cifar, hidden=23))}
ALL = {
    f"{name}, {how}": builds
    for how, pairs in (("wider", WIDER), ("deeper", DEEPER), ("both", BOTH), ("other", OTHER))
    for name, builds in pairs.items()
}


def by_name(pairs):
    return pytest.mark.parametrize("builds", pairs.values(), ids=pairs)


@by_name(ALL)
def test_the_student_computes_the_same_as_the_teacher(builds):
    teacher, student = pair(*builds)
    growth = grow(student, teacher, generator())
    assert growth.kind == "grown"
    assert growth.new_norms == ()
    assert_same_function(student, teacher, classify)
    assert classify(teacher).std() > 0.1, "nothing to compare"


def test_both_classifiers_of_a_distilled_transformer():
    teacher, student = pair(*WIDER["timm, distilled"])
    grow(student, teacher, generator())
    for model in (student, teacher):
        model.set_distilled_training()
    assert_same_function(
        student, teacher, lambda model: torch.stack(classify(model)) if model.training else classify(model)
    )


def test_dropout_and_stochastic_depth_of_the_student_do_not_matter_in_eval_mode():
    rates = {"drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.3}
    teacher, student = pair(of_timm, partial(of_timm, 24, 3, 6, **rates))
    grow(student, teacher, generator())
    with torch.no_grad():
        torch.testing.assert_close(classify(student.eval()), classify(teacher.eval()), rtol=0, atol=1e-9)
        assert not torch.allclose(classify(student.train()), classify(teacher))


def test_real_networks():
    """The sizes of DeiT-Ti and DeiT-S, for small images."""
    names = ("deit_tiny_patch16_224", "deit_small_patch16_224")
    teacher, student = pair(*(partial(timm.create_model, name, img_size=32, num_classes=5) for name in names))
    growth = grow(student, teacher, generator())
    with torch.no_grad():
        outputs = [classify(model.eval(), 32) for model in (student, teacher)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-9)
    assert growth.notes == ("width: 192 became 384", "hidden units: 768 became 1536")


@by_name({"timm": (of_timm, of_timm), "torchvision": (of_torchvision, of_torchvision), "cifar": (of_cifar, of_cifar)})
def test_the_same_size_is_a_warm_start(builds):
    teacher, student = pair(*builds)
    growth = grow(student, teacher, generator())
    assert growth.kind == "warm start"
    assert_same_function(student, teacher, classify, atol=0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@by_name(DEEPER)
def test_added_blocks_train(builds, optimizer):
    """The first step moves the tensors that start at zero, later steps the layers before them; queries move slowly."""
    teacher, student = pair(*builds)
    grow(student, teacher, generator())
    added = {name for name, _ in student.named_parameters()} - {name for name, _ in teacher.named_parameters()}
    moved = train(student, loss, optimizer, steps=5)
    assert len(added) >= 12
    assert {name: float(moved[name]) for name in added if moved[name] < 1e-10} == {}


def loss(model):
    """Cross-entropy of small pictures."""
    images = pictures(1, 4, SIDE_PX, next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 1]))


PARTS = {
    "timm": ("patch_embed.proj", "norm", "blocks.{}.attn.proj", "blocks.{}.mlp.fc1", "blocks.{}.mlp.fc2"),
    "torchvision": ("conv_proj", "encoder.ln", "encoder.layers.encoder_layer_{}.mlp.0"),
    "cifar": ("patches", "norm", "blocks.{}.linear1", "blocks.{}.linear2"),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("family", PARTS)
def test_copies_part(family, optimizer):
    """The outputs of two copies agree at first and differ after some steps."""
    builds = {**WIDER, "torchvision": (of_torchvision, partial(of_torchvision, 24, heads=6, hidden=40))}[family]
    teacher, student = pair(*builds)
    grow(student, teacher, generator())
    names = {name.format(block) for name in PARTS[family] for block in (0, 1)}
    assert max(gaps_between_copies(student, classify, names).values()) < 1e-9
    train(student, loss, optimizer, steps=10)
    gaps = gaps_between_copies(student, classify, names)
    assert len(gaps) == len(names)
    assert {name: gap for name, gap in gaps.items() if gap < 1e-4} == {}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_copies_of_heads_part(optimizer):
    teacher, student = pair(*WIDER["timm"])
    grow(student, teacher, generator())

    def gaps():
        found = []
        probe = student.blocks[1].attn.qkv.register_forward_hook(
            lambda _, __, output: found.append(output.unflatten(-1, (3, 3, 2, 4)))  # part, head, copy, channel
        )
        with torch.no_grad():
            classify(student)
        probe.remove()
        first, second = found[0].movedim((2, 3), (0, 1)).unbind(-2)
        return ((first - second).flatten(2).norm(dim=2) / first.flatten(2).norm(dim=2)).flatten()

    assert gaps().max() < 1e-9
    train(student, loss, optimizer, steps=10)
    assert gaps().min() > 1e-4


@pytest.mark.parametrize(
    ("small", "large", "problem"),
    [
        (
            lambda: get_model("vit_b_16"),
            lambda: get_model("vit_l_16"),
            "student: its width is 1024, not a multiple of the teacher's 768: use 768 or 1536",
        ),
        (partial(of_timm, 24, heads=6), of_timm, "its width is 12, not a multiple of the teacher's 24: use 24"),
        (
            of_timm,
            partial(of_timm, 24, heads=3),
            "student: blocks.0.attn has 3 heads of 8 channels, the teacher's 3 of 4: heads must keep their size: use 6",
        ),
        (
            of_timm,
            partial(of_timm, heads=6),
            "student: blocks.0.attn has 6 heads of 2 channels, the teacher's 3 of 4: heads must keep .*: use 3 heads",
        ),
        (partial(of_timm, depth=3), of_timm, "it has 2 blocks, the teacher 3: the student must be at least as deep"),
        (
            of_cifar,
            partial(of_cifar, 24, heads=6, hidden=16),
            "blocks.0.linear1 has 16 hidden units, .* 20: use at lea",
        ),
        (
            of_timm,
            lambda: VisionTransformer(SIDE_PX, 4, num_classes=3, embed_dim=24, depth=2, num_heads=6),
            "its pos_embed is for 17 tokens, the teacher's for 5: use the same image size and the same patch size",
        ),
        (
            of_timm,
            lambda: VisionTransformer(SIDE_PX, 8, num_classes=7, embed_dim=24, depth=2, num_heads=6),
            "it has 7 classes, the teacher 3: use a teacher with the student's classes",
        ),
        (
            partial(of_timm, global_pool="avg", fc_norm=False),
            partial(of_timm, 24, heads=6),
            "student: it has global_pool token, the teacher's avg",
        ),
        (of_timm, partial(of_timm, init_values=0.1), "student: blocks.0.ls1 has gamma, the teacher's nothing: use"),
        (
            of_timm,
            partial(of_timm, qkv_bias=False),
            "blocks.0.attn.qkv has weight, the teacher's weight, bias: use models of one",
        ),
        (of_timm, partial(of_timm, 24, heads=6, act_layer=nn.ReLU), "act has type ReLU, the teacher's GELU"),
        (
            partial(of_timm, global_pool="map", class_token=False),
            partial(of_timm, 24, heads=6, global_pool="map", class_token=False),
            "student: attn_pool.q, a Linear, cannot be widened: use a student of the teacher's width",
        ),
        (
            partial(of_timm, scale_mlp_norm=True),
            partial(of_timm, 24, heads=6, scale_mlp_norm=True),
            "student: blocks.0.mlp.norm, a LayerNorm, cannot be widened",
        ),
        (
            partial(of_timm, block_fn=ParallelScalingBlock),
            partial(of_timm, depth=3, block_fn=ParallelScalingBlock),
            "blocks.0 has a ParallelScalingBlock, which cannot be grown: use a model with Block",
        ),
        (
            of_torchvision,
            partial(of_torchvision, 24, heads=6, representation_size=7),
            "student: it has representation_size 7, the teacher's None: use models of one family",
        ),
    ],
)
def test_what_cannot_grow_is_refused(small, large, problem):
    with torch.device("meta"):
        teacher, student = small(), large()
    with pytest.raises(GrowthError, match=problem):
        grow(student, teacher, generator())


def test_types_do_not_mix():
    with pytest.raises(
        GrowthError, match="timm's VisionTransformer cannot grow into torchvision's VisionTransformer: us"
    ):
        grow(of_torchvision(24, heads=6), of_timm(), generator())
    with pytest.raises(
        GrowthError, match="VisionTransformer cannot grow into timm's VisionTransformerDistilled: use a"
    ):
        grow(distilled(24, heads=6), of_timm(), generator())
