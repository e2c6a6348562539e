import pytest
import torch
from growing import assert_same_function, generator, pictures, randomise, train
from little_scene import boxes_of
from torchvision.models import resnet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from w2skd.errors import GrowthError
from w2skd.tasks.detection.growth import grow_detector
from w2skd.tasks.detection.models.bodies import Body, build_pyramid
from w2skd.tasks.detection.models.catalog import build_detector, grid_of
from w2skd.tasks.detection.models.faster_rcnn import FasterRCNN, RegionSettings
from w2skd.tasks.detection.models.norm import FrozenBatchNorm
from w2skd.tasks.detection.models.retinanet import RetinaNet

STAGES = ("layer1", "layer2", "layer3", "layer4")
IMAGES = pictures(0, 2, 64, torch.float32)
SIZES = ((64, 64), (50, 60))
TRUTH = [boxes_of([[5, 5, 30, 40], [20, 20, 60, 60]], [0, 2]), boxes_of([[3, 3, 20, 20]], [1])]
FAMILIES = ("retinanet", "fasterrcnn")


def little(family, layers, frozen, block=resnet.Bottleneck, classes=3):
    """A detector with a narrow ResNet and one-layer heads."""
    options = {"width_per_group": 4} if block is resnet.Bottleneck else {}
    channels = tuple(block.expansion * each for each in (64, 128, 256, 512))
    body = Body(lambda norm: resnet.ResNet(block, layers, 5, norm_layer=norm, **options), STAGES, channels)
    grid = grid_of(f"{family}_resnet18", 0.5)
    if family == "retinanet":
        pyramid = build_pyramid(body, first=1, channels=8, top=LastLevelP6P7(8, 8), frozen_norm=frozen, norm=None)
        return RetinaNet(pyramid, classes, grid, head_depth=1)
    pyramid = build_pyramid(body, first=0, channels=8, top=None, frozen_norm=frozen, norm=None)
    return FasterRCNN(pyramid, classes, grid, regions=RegionSettings(hidden=16, proposals=20, sampled=16))


def pair(family, frozen, block=resnet.Bottleneck):
    torch.manual_seed(0)
    teacher = randomise(little(family, [1, 1, 1, 1], frozen, block))
    return teacher, little(family, [1, 2, 1, 2], frozen, block)


def call(detector):
    """Losses and head outputs in the detector's mode. The global generator samples the boxes."""
    torch.manual_seed(3)
    losses, heads, _ = detector(IMAGES, SIZES, TRUTH)
    return {**losses, **heads}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_outputs_are_the_teachers(family, frozen):
    teacher, student = pair(family, frozen)
    growth = grow_detector(student, teacher, generator())
    assert_same_function(student, teacher, call, torch.float32, atol=0)  # added blocks add zeros, without rounding
    assert growth.kind == "grown"
    assert growth.notes == ("blocks per stage: 1, 1, 1, 1 became 1, 2, 1, 2",)
    norms = ("bn1", "bn2") if frozen else ("bn1", "bn2", "bn3")  # a frozen last norm has to map zero to zero
    blocks = ("backbone.body.layer2.1", "backbone.body.layer4.1")
    assert growth.new_norms == tuple(f"{block}.{norm}" for block in blocks for norm in norms)


@pytest.mark.parametrize("frozen", [False, True])
def test_features_are_the_teachers_to_the_last_digits(frozen):
    teacher, student = pair("retinanet", frozen, resnet.BasicBlock)
    grow_detector(student, teacher, generator())
    assert_same_function(student.backbone, teacher.backbone, lambda body: body(pictures(0, 2, 64)))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_added_blocks_train(family, frozen, optimizer):
    """Two steps suffice: the first moves the tensors that start at zero, the second the layers before them."""
    teacher, student = pair(family, frozen)
    grow_detector(student, teacher, generator())

    def loss_of(detector):
        return sum(detector(IMAGES, SIZES, TRUTH).losses.values())

    # Fresh heads have weights of about 0.01, so gradients of the body are small for float32.
    moved = train(student, loss_of, optimizer, steps=2, loss_scale=100.0)
    added = {name: float(move) for name, move in moved.items() if ".layer2.1." in name or ".layer4.1." in name}
    assert len(added) == 2 * (3 if frozen else 9)
    assert {name: move for name, move in added.items() if move < 1e-7} == {}
    frozen_norms = [module for module in student.modules() if isinstance(module, FrozenBatchNorm)]
    assert bool(frozen_norms) == frozen


def test_a_frozen_teacher_and_a_student_with_trained_norms_agree_in_eval_mode():
    teacher, student = pair("retinanet", True)[0], pair("retinanet", False)[1]
    growth = grow_detector(student, teacher, generator())
    assert growth.notes[-1] == (
        "batch normalisation is frozen in the teacher and not in the student: outputs agree in eval mode only"
    )
    with torch.no_grad():
        ours, theirs = call(student.eval()), call(teacher.eval())
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["retinanet_slim", "fasterrcnn_slim"])
def test_the_same_detector_is_a_warm_start(name):
    torch.manual_seed(0)
    teacher, student = randomise(build_detector(name, 3)), build_detector(name, 3)
    growth = grow_detector(student, teacher, generator())
    assert growth.kind == "warm start"
    assert growth.copied == len(teacher.state_dict())
    assert_same_function(student, teacher, call, torch.float32, atol=0)


def test_a_real_detector_grows_a_deeper_body():
    torch.manual_seed(0)
    teacher, student = build_detector("retinanet_resnet18", 2), build_detector("retinanet_resnet34", 2)
    growth = grow_detector(student, teacher, generator())
    assert growth.notes == ("blocks per stage: 2, 2, 2, 2 became 3, 4, 6, 3",)
    assert (growth.copied, growth.added) == (len(teacher.state_dict()), 8 * 12)


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (("retinanet_slim", 3), ("fasterrcnn_slim", 3), "a RetinaNet cannot grow into a FasterRCNN: use one family"),
        (("retinanet_slim", 3), ("retinanet_slim", 4), "it has 3 classes, the student 4"),
        (("retinanet_slim", 3), ("retinanet_mobilenet_v2", 3), "student: its body is not a ResNet.*: use the same"),
        (
            ("retinanet_resnet18", 3),
            ("retinanet_resnet50", 3),
            "backbone.body.layer1 has blocks of type Bottleneck, .* BasicBlock: .*a ResNet-18 can become a ResNet-34",
        ),
        (
            ("retinanet_resnet34", 3),
            ("retinanet_resnet18", 3),
            "layer1 has 2 blocks, the teacher's 3: .*at least as deep",
        ),
    ],
)
def test_refusals(teacher, student, message):
    with torch.device("meta"):
        teacher, student = build_detector(*teacher), build_detector(*student)
    with pytest.raises(GrowthError, match=message):
        grow_detector(student, teacher, generator())


def test_other_anchors_are_refused():
    with torch.device("meta"):
        teacher, student = (build_detector("retinanet_slim", 3, anchor_scale=scale) for scale in (1.0, 0.5))
    with pytest.raises(GrowthError, match="set the same anchors for both"):
        grow_detector(student, teacher, generator())
