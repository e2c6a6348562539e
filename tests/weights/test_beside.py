from pathlib import Path

import pytest
import torch
from torch import nn

from w2skd.errors import CheckpointError
from w2skd.weights.beside import describe_beside, restore_beside
from w2skd.weights.load import Weights, load_into


class Scaled(nn.Linear):
    """A layer whose scale is not a tensor."""

    def __init__(self, scale=1.0):
        super().__init__(2, 2)
        self.scale = scale

    def forward(self, inputs):
        return self.scale * super().forward(inputs)

    def settings_beside_weights(self):
        return {"scale": self.scale}

    def set_beside_weights(self, *, scale):
        if not scale > 0:
            raise ValueError(f"the scale must be positive, not {scale}")
        self.scale = scale


def test_loading_restores_the_settings_that_a_file_records():
    made, model = Scaled(3.0), Scaled()
    load_into(model, Weights(Path("a"), made.state_dict(), details=describe_beside(made)), expected="scaled")
    assert torch.equal(model(torch.eye(2)), made(torch.eye(2)))
    load_into(model, Weights(Path("a"), made.state_dict()), expected="scaled")
    assert model.scale == 3


def test_most_networks_have_none():
    assert describe_beside(nn.Linear(2, 2)) == {}
    restore_beside(nn.Linear(2, 2), {}, "a.pt")


@pytest.mark.parametrize(
    ("details", "problem"),
    [
        ({"beside_weights": {"gain": 1}}, r"^a.pt: records the settings {'gain': 1}, but the model has \['scale'\]$"),
        ({"beside_weights": [1]}, r"^a.pt: records the settings \[1\], but the model has \['scale'\]$"),
        ({"beside_weights": {"scale": -1}}, "^a.pt: the scale must be positive, not -1$"),
    ],
)
def test_settings_of_another_model_are_refused(details, problem):
    with pytest.raises(CheckpointError, match=problem):
        restore_beside(Scaled(), details, "a.pt")
    with pytest.raises(CheckpointError, match="but the model has none"):
        restore_beside(nn.Linear(2, 2), details, "a.pt")
