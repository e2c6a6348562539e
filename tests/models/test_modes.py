import pytest
from torch import nn

from w2skd.models.modes import in_eval_mode


def modes(model):
    return [module.training for module in model.modules()]


def test_each_modules_mode_is_restored():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    with in_eval_mode(model):
        assert modes(model) == [False] * 4
    assert modes(model) == [True, True, False, False]


def test_modes_are_restored_after_an_error():
    model = nn.Dropout()
    with pytest.raises(ValueError, match="no"), in_eval_mode(model):
        raise ValueError("no")
    assert model.training
