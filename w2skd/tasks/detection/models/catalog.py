"""Names of detectors, and what they stand for."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from w2skd.errors import CheckpointError, RecipeError, suggest
from w2skd.tasks.detection.models.anchors import anchor_grid
from w2skd.tasks.detection.models.bodies import BODIES, Body, build_pyramid, group_norm
from w2skd.tasks.detection.models.faster_rcnn import FasterRCNN
from w2skd.tasks.detection.models.retinanet import RetinaNet
from w2skd.weights.fit import describe_misfit, fit

Detector = RetinaNet | FasterRCNN


class _Head(NamedTuple):
    """How large the part is that the body has no say in.

    Attributes:
        channels: of the pyramid.
        depth: convolutions of RetinaNet's heads.
        hidden: width of Faster R-CNN's box head.
        proposals: see `FasterRCNN`.
        sampled: see `FasterRCNN`.
        is_normalised: by groups, in the pyramid and in RetinaNet's heads. Published detectors are not; but from few
            images at a time, and without a long schedule, heads learn sooner so (Wu & He 2018, section 4.2).
    """

    channels: int = 256
    depth: int = 4
    hidden: int = 1024
    proposals: int = 1000
    sampled: int = 512
    is_normalised: bool = False


_HEADS = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _Head()),
    "mobilenet_v2": _Head(channels=64, depth=2, hidden=256, proposals=500, sampled=128, is_normalised=True),
    "slim": _Head(channels=32, depth=2, hidden=128, proposals=250, sampled=64, is_normalised=True),
}
"""Body -> head: as published with a ResNet, what a CPU can train with the smaller ones."""


DETECTORS: dict[str, tuple[type[RetinaNet] | type[FasterRCNN], str]] = {
    f"{family}_{body}": (architecture, body)
    for family, architecture in (("retinanet", RetinaNet), ("fasterrcnn", FasterRCNN))
    for body in BODIES
}
"""Name -> architecture, and the name of its body. `w2skd.tasks.detection.recipe` lists the same names."""


def build_detector(
    name: str,
    classes: int,
    *,
    frozen_norm: bool = False,
    frozen_stages: int = 0,
    anchor_scale: float = 1.0,
    max_detections: int = 100,
) -> Detector:
    """A freshly initialised detector, on the CPU.

    Args:
        name: one of `w2skd.tasks.detection.recipe.DETECTORS`.
        classes: K, without a background.
        frozen_norm: batch normalisations of the body keep statistics and scales, see `FrozenBatchNorm`. Only for a
            body that gets weights: a fresh one would have no normalisation at all. Slim bodies normalise groups, and
            have nothing to freeze.
        frozen_stages: how many of the body's four stages learn nothing; needs `frozen_norm`. With ImageNet weights, 1
            (the stem and the first stage) is the field's custom, and saves their backward.
        anchor_scale: factor of the anchors' sides, 1 being 32 to 512 px.
        max_detections: of one image, the best by score.

    Raises:
        RecipeError: there is no such detector, or anchors of that scale would be too small.
    """
    if name not in DETECTORS:
        raise RecipeError(f"unknown detector {name!r}{suggest(name, DETECTORS)}; known: {', '.join(DETECTORS)}")
    assert classes > 0, classes
    assert frozen_stages == 0 or (frozen_norm and 0 < frozen_stages <= 4), (frozen_stages, frozen_norm)
    family, body = DETECTORS[name]
    head = _HEADS[body]
    norm = group_norm if head.is_normalised else None
    pyramid = partial(
        build_pyramid,
        BODIES[body],
        channels=head.channels,
        frozen_norm=frozen_norm,
        frozen_stages=frozen_stages,
        norm=norm,
    )
    if family is RetinaNet:
        # The finest features would make too many anchors (Lin et al. 2017, "Focal loss", footnote 2).
        top = LastLevelP6P7(head.channels, head.channels)
        grid = anchor_grid(first_stride_px=8, octaves=3, scale=anchor_scale)
        return RetinaNet(
            pyramid(first=1, top=top),
            classes,
            grid,
            head_depth=head.depth,
            head_norm=norm,
            max_detections=max_detections,
        )
    return FasterRCNN(
        pyramid(first=0, top=None),
        classes,
        anchor_grid(first_stride_px=4, octaves=1, scale=anchor_scale),
        hidden=head.hidden,
        proposals=head.proposals,
        sampled=head.sampled,
        max_detections=max_detections,
    )


def backbone_classifier(name: str) -> str | None:
    """Whose weights a detector's body can take: ``torchvision:resnet18``, say; None if there is no such classifier."""
    classifier = BODIES[DETECTORS[name][1]].classifier
    return None if classifier is None else f"torchvision:{classifier}"


def load_backbone(detector: Detector, name: str, state: Mapping[str, Tensor]) -> str:
    """Put a classifier's weights into a detector's body.

    Args:
        detector: as `build_detector` made it.
        name: its name.
        state: of the classifier that `backbone_classifier` tells, with any number of classes.

    Returns:
        What was taken and what was left out, for people.

    Raises:
        CheckpointError: the body is no classifier's, or the weights are another one's.
    """
    body = BODIES[DETECTORS[name][1]]
    if body.classifier is None:
        raise CheckpointError(f"{name}: there is no classifier with its body, so no weights to start it from")
    found = fit(_as_in_classifier(detector.backbone.body, body), state)
    left_out = [each for each in found.unexpected if each.removeprefix(body.prefix).startswith(body.left_out)]
    found = replace(found, unexpected=[each for each in found.unexpected if each not in left_out])
    if not found.is_whole:
        raise CheckpointError(describe_misfit(found, f"torchvision:{body.classifier}", None))
    detector.backbone.body.load_state_dict({each.removeprefix(body.prefix): found.state[each] for each in found.own})
    return (
        f"backbone: {len(found.own):,} tensors of torchvision:{body.classifier} taken, "
        f"{len(left_out):,} after its last features left out"
    )


def _as_in_classifier(network: nn.Module, body: Body) -> nn.Module:
    """The network, with its tensors named as in the classifier."""
    return nn.ModuleDict({body.prefix.removesuffix("."): network}) if body.prefix else network


def check_same_grid(student: Detector, teacher: Detector) -> None:
    """Make sure that a teacher's outputs stand for the same boxes and as many classes as the student's.

    Raises:
        RecipeError: they don't; the message tells the first difference.
    """
    ours, theirs = type(student).__name__, type(teacher).__name__
    if ours != theirs:
        raise RecipeError(f"teacher: a {theirs} cannot teach a {ours}: their outputs do not match")
    if teacher.classes != student.classes:
        raise RecipeError(f"teacher: it has {teacher.classes} classes, the student {student.classes}")
    for what, here, there in (
        ("strides of {} px", student.grid.strides_px, teacher.grid.strides_px),
        ("anchors of {} px", student.grid.sizes_px, teacher.grid.sizes_px),
        ("anchors of height / width {}", student.grid.ratios, teacher.grid.ratios),
    ):
        if here != there:
            its, the_students = (what.format(", ".join(map(_plain, values))) for values in (there, here))
            raise RecipeError(f"teacher: it has {its}, the student {the_students}: give both the same anchors")


def _plain(value: float | tuple[float, ...]) -> str:
    return "/".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}"
