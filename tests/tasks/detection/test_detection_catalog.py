import pytest
import torch
from little_scene import boxes_of
from torchvision.models import detection as torchvisions
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from w2skd.errors import CheckpointError, RecipeError
from w2skd.models.catalog import build_classifier
from w2skd.models.measure import count_parameters, forward_flops
from w2skd.tasks.detection import recipe as names
from w2skd.tasks.detection.models.catalog import (
    DETECTORS,
    backbone_classifier,
    build_detector,
    check_same_grid,
    load_backbone,
)
from w2skd.tasks.detection.models.norm import FrozenBatchNorm


def test_recipes_know_the_catalogs_names():
    assert tuple(DETECTORS) == names.DETECTORS


def test_parameters_are_those_of_torchvisions_builders():
    with torch.device("meta"):
        ours = [count_parameters(build_detector(f"{family}_resnet50", 90)) for family in ("retinanet", "fasterrcnn")]
        untrained = {"weights": None, "weights_backbone": None}
        theirs = [
            count_parameters(torchvisions.retinanet_resnet50_fpn(num_classes=90, **untrained)),
            # It counts the background among the classes.
            count_parameters(torchvisions.fasterrcnn_resnet50_fpn(num_classes=91, **untrained)),
        ]
    assert ours == theirs


def test_state_is_that_of_torchvisions_published_detectors():
    """So their weights can be loaded, except for RetinaNet's unused class 0."""
    with torch.device("meta"):
        ours = build_detector("fasterrcnn_resnet50", 90).state_dict()
        theirs = torchvisions.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


@pytest.mark.parametrize("depth", [18, 34, 101])
def test_other_resnets_have_torchvisions_parameters(depth):
    with torch.device("meta"):
        body = {"backbone_name": f"resnet{depth}", "weights": None, "norm_layer": torch.nn.BatchNorm2d}
        dense = resnet_fpn_backbone(**body, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
        theirs = [
            count_parameters(torchvisions.RetinaNet(dense, 5)),
            count_parameters(torchvisions.FasterRCNN(resnet_fpn_backbone(**body), 6)),
        ]
        ours = [
            count_parameters(build_detector(f"{family}_resnet{depth}", 5)) for family in ("retinanet", "fasterrcnn")
        ]
    assert ours == theirs


@pytest.mark.parametrize("name", names.DETECTORS)
def test_all_of_a_family_share_one_grid_and_its_strides_are_true(name):
    family = name.partition("_")[0]
    with torch.device("meta"):
        detector, slim = build_detector(name, 4), build_detector(f"{family}_slim", 4)
        levels = detector.backbone(torch.empty(1, 3, 256, 384)).values()
    check_same_grid(slim, detector)
    assert tuple(256 // level.shape[2] for level in levels) == detector.grid.strides_px
    assert tuple(384 // level.shape[3] for level in levels) == detector.grid.strides_px


def test_anchors_are_torchvisions():
    with torch.device("meta"):
        reference = torchvisions.retinanet_resnet50_fpn(weights=None, weights_backbone=None)
        two_stage = torchvisions.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        ours, ours_in_two = build_detector("retinanet_slim", 4), build_detector("fasterrcnn_slim", 4)
    assert ours.grid.sizes_px == reference.anchor_generator.sizes
    assert ours_in_two.grid.sizes_px == two_stage.rpn.anchor_generator.sizes
    assert ours.anchor_generator.aspect_ratios == reference.anchor_generator.aspect_ratios


def test_anchor_scale_scales_the_anchors():
    assert build_detector("fasterrcnn_slim", 4, anchor_scale=0.25).grid.sizes_px == ((8,), (16,), (32,), (64,), (128,))
    assert build_detector("retinanet_slim", 4, anchor_scale=0.25).grid.sizes_px[0] == (8, 10, 12)
    with pytest.raises(RecipeError, match=r"anchor_scale: 0.1 gives anchors of 3.2 px, the minimum is 4 px; use 0.125"):
        build_detector("retinanet_slim", 4, anchor_scale=0.1)


def test_unknown_detectors_are_refused():
    with pytest.raises(RecipeError, match=r"unknown detector 'retinanet_resnet52' \(did you mean 'retinanet_resnet50'"):
        build_detector("retinanet_resnet52", 4)


def test_frozen_norms_stay_as_they_are():
    torch.manual_seed(0)
    plain = build_detector("retinanet_mobilenet_v2", 2)
    frozen = build_detector("retinanet_mobilenet_v2", 2, frozen_norm=True, anchor_scale=0.25).train()
    frozen.load_state_dict(plain.state_dict())  # the same names, whether frozen or not
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    optimizer = torch.optim.SGD(frozen.parameters(), 0.1, weight_decay=0.1)
    losses = frozen(torch.randn(1, 3, 64, 64), ((64, 64),), [boxes_of([[5, 5, 40, 40]], [1])]).losses
    sum(losses.values()).backward()
    optimizer.step()
    norms = [name for name, module in frozen.named_modules() if isinstance(module, FrozenBatchNorm)]
    assert len(norms) == 51
    changed = {name for name, tensor in frozen.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if name.rpartition(".")[0] in norms} == set()
    assert "backbone.body.0.0.weight" in changed


@pytest.mark.parametrize(
    ("name", "tensors", "left_out"),
    [("retinanet_resnet18", 120, 2), ("fasterrcnn_resnet50", 318, 2), ("retinanet_mobilenet_v2", 306, 8)],
)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_classifiers_weights_are_taken(name, tensors, left_out, wrapper):
    torch.manual_seed(0)
    classifier = build_classifier(backbone_classifier(name), 7).eval()
    for module in classifier.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    detector = build_detector(name, 2, frozen_norm=True).eval()
    notes = load_backbone(detector, name, {wrapper + key: each for key, each in classifier.state_dict().items()})
    assert notes == (
        f"backbone: loaded {tensors} tensors of {backbone_classifier(name)}, ignored {left_out} after its last features"
    )
    images = torch.randn(1, 3, 64, 64)
    seen = {}
    last = classifier.features[17] if "mobilenet" in name else classifier.layer4
    last.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    with torch.no_grad():
        classifier(images)
        features = list(detector.backbone.body(images).values())
    assert torch.equal(features[-1], seen["features"])


@pytest.mark.parametrize(
    ("name", "classifier", "message"),
    [
        ("retinanet_resnet18", "torchvision:resnet34", "not the weights of torchvision:resnet18: .*another model of"),
        ("retinanet_resnet50", "torchvision:mobilenet_v2", "not the weights of torchvision:resnet50"),
        ("retinanet_mobilenet_v2", "torchvision:resnet18", "not the weights of torchvision:mobilenet_v2"),
        ("retinanet_slim", "torchvision:resnet18", "retinanet_slim: no classifier has its body"),
    ],
)
def test_another_models_weights_are_refused(name, classifier, message):
    with torch.device("meta"):
        state = build_classifier(classifier, 7).state_dict()
        detector = build_detector(name, 2)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_backbone(detector, name, state)
    assert "\n" not in str(caught.value)


def test_a_teacher_must_have_its_students_anchors_and_classes():
    with torch.device("meta"):
        student = build_detector("retinanet_slim", 4)
        others = [
            build_detector("fasterrcnn_slim", 4),
            build_detector("retinanet_slim", 5),
            build_detector("retinanet_slim", 4, anchor_scale=0.5),
        ]
        coarser, tall = build_detector("retinanet_slim", 4), build_detector("retinanet_slim", 4)
    coarser.grid = coarser.grid._replace(strides_px=(16, 32, 64, 128, 256))
    tall.grid = tall.grid._replace(ratios=(1.0, 2.0, 3.0))
    reasons = [
        "a FasterRCNN cannot teach a RetinaNet: their outputs differ",
        "it has 5 classes, the student 4",
        "it has anchors of 16/20/25, .* the student anchors of 32/40/50, .*set the same anchors for both",
        "it has strides of 16, 32, 64, 128, 256 px, the student strides of 8, 16, 32, 64, 128 px",
        "it has anchors of height / width 1, 2, 3, the student anchors of height / width 0.5, 1, 2",
    ]
    for teacher, reason in zip([*others, coarser, tall], reasons, strict=True):
        with pytest.raises(RecipeError, match=f"^teacher: {reason}") as caught:
            check_same_grid(student, teacher)
        assert "\n" not in str(caught.value)
    check_same_grid(student, student)


@pytest.mark.parametrize("name", ["retinanet_slim", "fasterrcnn_slim"])
def test_slim_detectors_are_small(name):
    detector = build_detector(name, 3, anchor_scale=0.25)
    assert count_parameters(detector) < 500_000
    assert forward_flops(detector, (torch.randn(1, 3, 128, 128), ((128, 128),))) < 1e9
