import pytest
import torch
from torch import Tensor

from w2skd.platform.ranks import Ranks
from w2skd.training.window import Window


class TwinRanks(Ranks):
    """Two ranks with equal values."""

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor.mul_(2)


def test_means_cover_the_values_since_the_last_means() -> None:
    window = Window()
    assert window.take_means(Ranks()) == {}
    for value in (1.0, 2.0, 6.0):
        window.add({"loss": torch.tensor(value)})
    assert window.take_means(Ranks()) == {"loss": 3.0}
    window.add({"loss": torch.tensor(5.0)})
    assert window.take_means(Ranks()) == {"loss": 5.0}
    assert window.take_means(Ranks()) == {}


def test_a_name_is_averaged_over_the_micro_batches_that_have_it() -> None:
    window = Window()
    window.add({"task": torch.tensor(1.0)})
    window.add({"task": torch.tensor(3.0), "distill": torch.tensor(10.0)})
    window.add({"task": torch.tensor(5.0)})
    assert window.take_means(Ranks()) == {"task": 3.0, "distill": 10.0}


def test_added_tensors_do_not_change_and_keep_no_graph() -> None:
    window = Window()
    weight = torch.tensor(2.0, requires_grad=True)
    loss = weight * 3
    for _ in range(3):
        window.add({"loss": loss})
    assert loss.item() == 6.0
    assert window.take_means(Ranks()) == {"loss": 6.0}
    loss.backward()
    assert weight.grad == 3.0


def test_small_bf16_terms_are_not_lost() -> None:
    window = Window()
    for _ in range(1000):
        window.add({"loss": torch.tensor(1.0, dtype=torch.bfloat16)})
    assert window.take_means(Ranks()) == {"loss": 1.0}  # a bf16 sum would stop growing at 256


def test_a_non_finite_value_makes_the_mean_non_finite() -> None:
    window = Window()
    window.add({"loss": torch.tensor(1.0), "kl": torch.tensor(1.0)})
    window.add({"loss": torch.tensor(float("nan")), "kl": torch.tensor(3.0)})
    means = window.take_means(Ranks())
    assert means["loss"] != means["loss"]
    assert means["kl"] == 2.0


def test_the_mean_covers_all_ranks() -> None:
    window = Window()
    window.add({"loss": torch.tensor(1.0)})
    window.add({"loss": torch.tensor(2.0)})
    assert window.take_means(TwinRanks(rank=0, world=2))["loss"] == pytest.approx(1.5)
