"""Build detectors by name, load backbone weights, and check that a teacher fits its student."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from w2skd.errors import CheckpointError, RecipeError, suggest
from w2skd.tasks.detection.models.anchors import AnchorGrid, anchor_grid
from w2skd.tasks.detection.models.bodies import BODIES, Body, build_pyramid, group_norm
from w2skd.tasks.detection.models.faster_rcnn import FasterRCNN, RegionSettings
from w2skd.tasks.detection.models.retinanet import RetinaNet
from w2skd.weights.fit import describe_misfit, fit

Detector = RetinaNet | FasterRCNN


class _Head(NamedTuple):
    """Sizes of the pyramid and the heads.

    Attributes:
        channels: of the pyramid.
        depth: convolutions of RetinaNet's heads.
        regions: stages of Faster R-CNN.
        is_normalised: use group normalisation in the pyramid and in RetinaNet's heads. Published detectors don't, but
            with small batches and short schedules it speeds up training (Wu & He 2018, section 4.2).
    """

    channels: int = 256
    depth: int = 4
    regions: RegionSettings = RegionSettings()
    is_normalised: bool = False


_HEADS = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _Head()),
    "mobilenet_v2": _Head(64, 2, RegionSettings(hidden=256, proposals=500, sampled=128), is_normalised=True),
    "slim": _Head(32, 2, RegionSettings(hidden=128, proposals=250, sampled=64), is_normalised=True),
}
"""Body -> head: as published for ResNets, small enough to train on a CPU for the others."""

DETECTORS: dict[str, tuple[type[RetinaNet] | type[FasterRCNN], str]] = {
    f"{family}_{body}": (architecture, body)
    for family, architecture in (("retinanet", RetinaNet), ("fasterrcnn", FasterRCNN))
    for body in BODIES
}
"""Name -> architecture and name of its body. `w2skd.tasks.detection.recipe` lists the same names without torch."""


def grid_of(name: str, anchor_scale: float) -> AnchorGrid:
    """Return a detector's anchors, see `build_detector`."""
    if DETECTORS[name][0] is RetinaNet:
        return anchor_grid(first_stride_px=8, octaves=3, scale=anchor_scale)
    return anchor_grid(first_stride_px=4, octaves=1, scale=anchor_scale)


def build_detector(
    name: str,
    classes: int,
    *,
    frozen_norm: bool = False,
    anchor_scale: float = 1.0,
    max_detections: int = 100,
) -> Detector:
    """Build a randomly initialised detector on the CPU.

    Args:
        name: one of `w2skd.tasks.detection.recipe.DETECTORS`.
        classes: K, without a background.
        frozen_norm: freeze the body's batch normalisation, see `FrozenBatchNorm`. Only for bodies that get pretrained
            weights. Slim bodies use group normalisation and ignore it.
        anchor_scale: factor of the anchors' sides; 1 is 32 to 512 px.
        max_detections: highest-scoring detections kept per image.

    Raises:
        RecipeError: the name is unknown, or anchors of that scale would be too small.
    """
    if name not in DETECTORS:
        raise RecipeError(f"unknown detector {name!r}{suggest(name, DETECTORS)}; known: {', '.join(DETECTORS)}")
    assert classes > 0, classes
    family, body = DETECTORS[name]
    head, grid = _HEADS[body], grid_of(name, anchor_scale)
    norm = group_norm if head.is_normalised else None
    pyramid = partial(
        build_pyramid,
        BODIES[body],
        channels=head.channels,
        frozen_norm=frozen_norm,
        norm=norm,
    )
    if family is RetinaNet:
        # Without the finest features, which would have too many anchors (Lin et al. 2017, "Focal loss", footnote 2).
        top = LastLevelP6P7(head.channels, head.channels)
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
        grid,
        regions=head.regions,
        max_detections=max_detections,
    )


def backbone_classifier(name: str) -> str | None:
    """Return the classifier that a detector's body is from, such as ``torchvision:resnet18``; None if none is."""
    classifier = BODIES[DETECTORS[name][1]].classifier
    return None if classifier is None else f"torchvision:{classifier}"


def load_backbone(detector: Detector, name: str, state: Mapping[str, Tensor]) -> str:
    """Load a classifier's weights into a detector's body.

    Args:
        detector: a detector from `build_detector`.
        name: its name.
        state: state dict of the classifier `backbone_classifier(name)`, with any number of classes.

    Returns:
        One line with the numbers of loaded and ignored tensors.

    Raises:
        CheckpointError: no classifier has this body, or the weights are those of another classifier.
    """
    body = BODIES[DETECTORS[name][1]]
    if body.classifier is None:
        raise CheckpointError(f"{name}: no classifier has its body, so it cannot be initialised from weights")
    found = fit(_as_in_classifier(detector.backbone.body, body), state)
    left_out = [each for each in found.unexpected if each.removeprefix(body.prefix).startswith(body.left_out)]
    found = replace(found, unexpected=[each for each in found.unexpected if each not in left_out])
    if not found.is_whole:
        raise CheckpointError(describe_misfit(found, f"torchvision:{body.classifier}", None))
    detector.backbone.body.load_state_dict({each.removeprefix(body.prefix): found.state[each] for each in found.own})
    return (
        f"backbone: loaded {len(found.own):,} tensors of torchvision:{body.classifier}, "
        f"ignored {len(left_out):,} after its last features"
    )


def _as_in_classifier(network: nn.Module, body: Body) -> nn.Module:
    """Wrap the network so that its tensors have the names that they have in the classifier."""
    return nn.ModuleDict({body.prefix.removesuffix("."): network}) if body.prefix else network


def check_same_grid(student: Detector, teacher: Detector) -> None:
    """Check that teacher and student have the same anchors and number of classes.

    Raises:
        RecipeError: they differ; the message names the first difference.
    """
    ours, theirs = type(student).__name__, type(teacher).__name__
    if ours != theirs:
        raise RecipeError(f"teacher: a {theirs} cannot teach a {ours}: their outputs differ; use one family")
    if teacher.classes != student.classes:
        raise RecipeError(f"teacher: it has {teacher.classes} classes, the student {student.classes}")
    for what, here, there in (
        ("strides of {} px", student.grid.strides_px, teacher.grid.strides_px),
        ("anchors of {} px", student.grid.sizes_px, teacher.grid.sizes_px),
        ("anchors of height / width {}", student.grid.ratios, teacher.grid.ratios),
    ):
        if here != there:
            its, the_students = (what.format(", ".join(map(_plain, values))) for values in (there, here))
            raise RecipeError(f"teacher: it has {its}, the student {the_students}: set the same anchors for both")


def _plain(value: float | tuple[float, ...]) -> str:
    return "/".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}"
