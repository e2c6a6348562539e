import pytest
import torch
from growing import assert_same_function, generator, randomise
from torch import nn

from w2skd.errors import GrowthError
from w2skd.models.catalog import build_classifier
from w2skd.models.cifar_resnet import CifarResNet
from w2skd.models.growth.catalog import grow
from w2skd.models.wide_resnet import WideResNet


def test_any_model_can_start_from_one_of_the_same_architecture():
    torch.manual_seed(0)
    teacher, student = randomise(build_classifier("small_cnn_weak", 3)), build_classifier("small_cnn_weak", 3)
    growth = grow(student, teacher, generator())
    assert growth.kind == "warm start"
    assert growth.notes == ("copied the teacher, which has the student's architecture",)
    assert_same_function(student, teacher, rtol=0, atol=0)


def test_equal_shapes_are_not_enough_for_a_copy():
    teacher, student = (nn.Sequential(nn.Conv2d(3, 4, 3), act) for act in (nn.ReLU(), nn.GELU()))
    with pytest.raises(GrowthError, match="torch's Sequential cannot be grown; supported families: residual net"):
        grow(student, teacher, generator())
    teacher, student = (nn.Sequential(nn.Conv2d(3, 4, 3, dilation=each)) for each in (1, 2))
    with pytest.raises(GrowthError, match="cannot be grown"):
        grow(student, teacher, generator())


def test_families_do_not_mix():
    with pytest.raises(GrowthError, match="w2skd's WideResNet cannot grow into w2skd's CifarResNet: use a teacher of"):
        grow(CifarResNet(14, 3), WideResNet(10, 1, 3), generator())


def test_a_subclass_may_compute_something_else():
    class Custom(CifarResNet):
        pass

    with pytest.raises(GrowthError, match="Custom cannot be grown"):
        grow(Custom(14, 3), Custom(8, 3), generator())


def test_growing_repeats_by_seed():
    def grown(seed):
        torch.manual_seed(0)
        teacher, student = WideResNet(10, 2, 3), WideResNet(10, 3, 3)
        grow(student, teacher, generator(seed))
        return student.state_dict()

    first, second, third = grown(0), grown(0), grown(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stage2.0.conv1.weight"], third["stage2.0.conv1.weight"])
