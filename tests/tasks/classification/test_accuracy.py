import math

import pytest
import torch

from w2skd.tasks.classification.accuracy import Accuracy


def batch(seed, examples, classes):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(examples, classes, generator=generator) * 2,
        torch.randint(classes, (examples,), generator=generator),
    )


def slow_reference(logits, labels):
    top1 = top5 = loss = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        top1 += order[0] == label
        top5 += label in order[:5]
        loss += math.log(sum(math.exp(value) for value in row)) - row[label]
    return {"top1": top1 / len(labels), "top5": top5 / len(labels), "loss": loss / len(labels)}


@pytest.mark.parametrize("classes", [2, 5, 6, 30])
def test_matches_the_slow_reference_over_uneven_batches(classes):
    parts = [batch(seed, examples, classes) for seed, examples in enumerate([40, 1, 17])]
    accuracy = Accuracy(classes, 58, "cpu")
    for (logits, labels), start in zip(parts, (0, 40, 41), strict=True):
        accuracy.add(logits, labels, torch.arange(start, start + len(labels)))
    expected = slow_reference(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]))
    assert accuracy.result() == pytest.approx(expected, rel=1e-6)


def test_per_class_counts():
    logits = torch.eye(3)[[0, 1, 1, 0]]  # predictions 0, 1, 1, 0
    accuracy = Accuracy(3, 4, "cpu")
    accuracy.add(logits, torch.tensor([0, 0, 1, 0]), torch.arange(4))
    rows = accuracy.per_class()
    assert rows[0] == {"class": 0, "examples": 3, "top1": pytest.approx(2 / 3)}
    assert rows[1] == {"class": 1, "examples": 1, "top1": 1.0}
    assert rows[2]["examples"] == 0
    assert math.isnan(rows[2]["top1"])


def test_with_up_to_five_classes_top5_is_certain():
    accuracy = Accuracy(4, 50, "cpu")
    accuracy.add(*batch(0, 50, 4), torch.arange(50))
    assert accuracy.result()["top5"] == 1.0


def test_ties_go_to_the_lower_class():
    accuracy = Accuracy(8, 8, "cpu")
    accuracy.add(torch.zeros(8, 8), torch.arange(8), torch.arange(8))
    assert accuracy.result() == {"top1": 1 / 8, "top5": 5 / 8, "loss": pytest.approx(math.log(8))}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_a_non_finite_logit_counts_as_wrong_and_makes_the_loss_nan(value, position):
    logits, labels = torch.tensor([[9.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 0])
    logits[0, position] = value
    accuracy = Accuracy(2, 2, "cpu")
    accuracy.add(logits, labels, torch.arange(2))
    result = accuracy.result()
    assert (result["top1"], result["top5"]) == (0.5, 0.5)
    assert math.isnan(result["loss"])
    assert accuracy.per_class()[0]["top1"] == 0.5


def test_ranks_add_up_to_the_same_numbers_in_any_order():
    whole, first, second = (Accuracy(6, 130, "cpu") for _ in range(3))
    logits, labels = batch(0, 130, 6)
    parts = [(logits[ids], labels[ids], ids) for ids in torch.arange(130).split(13)]
    for part in parts:
        whole.add(*part)
    for number, part in enumerate(reversed(parts)):
        (first, second)[number % 2].add(*part)
    first.sums += second.sums
    assert first.sums.dtype == torch.float64
    assert first.sums.ndim == 1
    assert first.result() == whole.result()
    assert first.per_class() == whole.per_class()


def test_bf16_logits_with_gradients_are_accepted():
    logits, labels = batch(3, 20, 6)
    accuracy = Accuracy(6, 20, "cpu")
    accuracy.add(logits.bfloat16().requires_grad_(), labels, torch.arange(20))
    assert not accuracy.sums.requires_grad
    assert accuracy.result() == pytest.approx(slow_reference(logits.bfloat16(), labels), rel=1e-6)


def test_without_examples_results_are_nan():
    assert all(math.isnan(value) for value in Accuracy(3, 0, "cpu").result().values())


@pytest.mark.parametrize(("logits", "labels"), [((4, 5), (4,)), ((4, 3), (3,)), ((4, 3), (4, 1)), ((3,), ())])
def test_mismatched_shapes_are_rejected(logits, labels):
    with pytest.raises(ValueError, match="3 classes"):
        Accuracy(3, 4, "cpu").add(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64), torch.arange(4))


@pytest.mark.cuda
@pytest.mark.needs_gpu(reason="counts synchronisations")
def test_adding_does_not_synchronise_with_a_cuda_device():
    logits, labels = (part.cuda() for part in batch(0, 20, 6))
    accuracy, ids = Accuracy(6, 20, "cuda"), torch.arange(20, device="cuda")
    accuracy.add(logits[:10], labels[:10], ids[:10])
    torch.cuda.set_sync_debug_mode("error")
    try:
        accuracy.add(logits[10:], labels[10:], ids[10:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert accuracy.result() == pytest.approx(slow_reference(logits.cpu(), labels.cpu()), rel=1e-5)
