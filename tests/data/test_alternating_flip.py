"""Which side of an image each epoch shows."""

import pytest
import torch

from w2skd.data.alternating_flip import is_mirrored

EXAMPLES = torch.arange(10_000)


def test_every_example_is_mirrored_in_every_second_epoch():
    epochs = torch.stack([is_mirrored(3, epoch, EXAMPLES) for epoch in range(6)])
    assert torch.equal(epochs[0], ~epochs[1])
    for epoch in range(2, 6):
        assert torch.equal(epochs[epoch], epochs[epoch - 2])


@pytest.mark.parametrize("seed", [0, 1])
def test_half_of_the_examples_start_mirrored(seed: int):
    """The share is 0.5 within four standard deviations, 0.02."""
    assert is_mirrored(seed, 0, EXAMPLES).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_seeds_are_independent():
    same = is_mirrored(0, 0, EXAMPLES) == is_mirrored(1, 0, EXAMPLES)
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_repeats_of_an_example_alternate():
    repeats = torch.arange(4)
    sides = is_mirrored(0, 0, torch.full((4,), 7), repeats)
    assert torch.equal(sides[1:], ~sides[:-1])
    assert torch.equal(is_mirrored(0, 1, torch.full((4,), 7), repeats), ~sides)


def test_integers_and_tensors_agree():
    for epoch in (0, 1, 5):
        many = is_mirrored(9, epoch, EXAMPLES[:20], 2)
        assert many.tolist() == [bool(is_mirrored(9, epoch, example, 2)) for example in range(20)]
