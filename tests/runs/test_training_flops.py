"""FLOPs in the records are those of training, also where a model does something else in evaluation."""

from pathlib import Path

import pytest
import tiny_boxes
import torch
from known import load_recipe
from tiny import done, recipe_file

from w2skd.models.measure import forward_flops
from w2skd.platform.ranks import Ranks
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import Setup, set_up


def setup_of(recipe: Path, folder: Path, arm: str) -> Setup:
    return set_up(load_recipe(str(recipe)), arm, RunOptions(folder / "out", device="cpu"), Ranks())


def test_a_classifiers_are_those_of_its_forward_pass(tmp_path: Path) -> None:
    setup = setup_of(recipe_file(tmp_path), tmp_path, "baseline")
    inputs = setup.task.example_batch().model_inputs
    assert setup.describe(Ranks())["forward_flops"] == {"student": forward_flops(setup.model, inputs)}


@pytest.mark.parametrize("family", tiny_boxes.FAMILIES)
def test_a_detectors_are_those_of_its_losses(family: str, tmp_path: Path) -> None:
    recipe = tiny_boxes.recipe_of(tmp_path, family)
    done("train-teacher", "-r", recipe, "--out", tmp_path / "out")
    setup = setup_of(recipe, tmp_path, "w2s")
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    state, modes = torch.get_rng_state(), {name: module.training for name, module in setup.model.named_modules()}
    flops = setup.describe(Ranks())["forward_flops"]
    in_evaluation = forward_flops(setup.model, setup.task.example_batch().model_inputs)
    if family == "retinanet":
        assert flops == {"student": in_evaluation, "teacher": in_evaluation}
    else:  # it samples 64 regions in training and takes 250 in evaluation
        assert 1.5 < in_evaluation / flops["student"] < 3
        assert flops["teacher"] < in_evaluation
    assert torch.equal(torch.get_rng_state(), state), "training draws the same numbers"
    assert modes.items() <= {name: module.training for name, module in setup.model.named_modules()}.items()
    assert all(torch.equal(before[name], tensor) for name, tensor in setup.model.state_dict().items())
