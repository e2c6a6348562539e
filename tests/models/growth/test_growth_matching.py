import pytest
from timm.layers import DropPath
from torch import nn

from w2skd.errors import GrowthError
from w2skd.models.growth.matching import check_classes, check_same_layers, is_same_architecture


class FrozenNorm(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 4, 3)),
        (nn.BatchNorm2d(8, momentum=0.01), nn.BatchNorm2d(4)),
        (FrozenNorm(4), nn.BatchNorm2d(4)),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Identity())),
        (nn.Sequential(nn.Identity()), nn.Sequential(DropPath(0.1))),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Sequential(nn.ReLU(inplace=True))),
    ],
)
def test_layers_that_match(student, teacher):
    check_same_layers(student, teacher)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, 2), r"it has stride \(1, 1\), the teacher's \(2, 2\)"),
        (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()), "student: 0 has type ReLU, the teacher's GELU"),
        (nn.GELU("tanh"), nn.GELU(), "approximate tanh, the teacher's none"),
        (nn.BatchNorm2d(4, eps=0.1), nn.BatchNorm2d(4), "eps 0.1, the teacher's 1e-05"),
        (nn.GroupNorm(2, 8), nn.GroupNorm(4, 8), "num_groups 2, the teacher's 4"),
        (nn.Sequential(), nn.Sequential(nn.ReLU()), "teacher: the student has no counterpart of 0"),
    ],
)
def test_layers_that_do_not_match(student, teacher, message):
    with pytest.raises(GrowthError, match=message):
        check_same_layers(student, teacher)
    assert not is_same_architecture(student, teacher)


def test_the_same_architecture_has_the_same_shapes():
    assert is_same_architecture(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 3)))
    assert not is_same_architecture(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4)))
    assert not is_same_architecture(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Sequential(nn.Linear(2, 3)))


def test_the_number_of_classes():
    check_classes(nn.Sequential(nn.Linear(8, 3)), nn.Sequential(nn.Linear(4, 3)), "0")
    with pytest.raises(GrowthError, match="it has 3 classes, the teacher 5: use a teacher with the student's classes"):
        check_classes(nn.Sequential(nn.Linear(8, 3)), nn.Sequential(nn.Linear(4, 5)), "0")
