"""Batches do not depend on the device."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CPU, task_on

from w2skd.data import counter
from w2skd.data.transfer import to_device
from w2skd.tasks.diffusion.starting_noise import starting_noise

pytestmark = pytest.mark.cuda

ROUNDING = {"rtol": 0, "atol": 2e-6}


def batches(device: torch.device, name: str, folder: Path, *changes: str) -> list[Any]:
    """Return the first batches, beyond the end of an epoch."""
    task = task_on(device, name, folder, *changes)
    return list(islice(task.train_batches(0), task.steps_per_epoch + 2))


@pytest.mark.parametrize(("workers", "layout"), [(None, "true"), (None, "false"), (0, "true"), (2, "true")])
def test_labelled_images(workers: int | None, layout: str, device: torch.device, tmp_path: Path) -> None:
    kind = ["data.feed=resident"] if workers is None else ["data.feed=streaming", f"data.workers={workers}"]
    changes = (*kind, "data.augment=[crop, flip, cutout]", "data.cutmix=1.0", f"train.channels_last={layout}")
    wanted = batches(CPU, "classification", tmp_path, *changes)
    memory_format = torch.channels_last if layout == "true" else torch.contiguous_format
    for ours, theirs in zip(batches(device, "classification", tmp_path, *changes), wanted, strict=True):
        assert {each.device.type for each in (ours.images, ours.labels, ours.ids)} == {device.type}
        assert ours.images.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(ours.images.cpu(), theirs.images, **ROUNDING)
        for name in ("labels", "partner_labels", "ids"):
            assert torch.equal(getattr(ours, name).cpu(), getattr(theirs, name))
        assert (ours.step, ours.slice, ours.share) == (theirs.step, theirs.slice, theirs.share)


def test_progressive_sizes(device: torch.device, tmp_path: Path) -> None:
    changes = ("data.progressive={from_px: 8, until: 6step, multiple_px: 4}",)
    wanted = batches(CPU, "classification", tmp_path, *changes)
    assert len({batch.images.shape for batch in wanted}) > 1
    for ours, theirs in zip(batches(device, "classification", tmp_path, *changes), wanted, strict=True):
        torch.testing.assert_close(ours.images.cpu(), theirs.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_with_boxes(workers: int, device: torch.device, tmp_path: Path) -> None:
    changes = (f"data.workers={workers}", "data.augment=[flip, scale, crop]", "train.channels_last=true")
    wanted = batches(CPU, "retinanet", tmp_path, *changes)
    for ours, theirs in zip(batches(device, "retinanet", tmp_path, *changes), wanted, strict=True):
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours.images.cpu(), theirs.images, **ROUNDING)
        assert torch.equal(ours.ids.cpu(), theirs.ids)
        assert ours.sizes == theirs.sizes
        assert torch.equal(ours.scales, theirs.scales)
        for truth, other in zip(ours.targets, theirs.targets, strict=True):
            assert {truth.boxes.device.type, truth.labels.device.type} == {device.type}
            assert torch.equal(truth.boxes.cpu(), other.boxes)
            assert torch.equal(truth.labels.cpu(), other.labels)


def test_images_to_noise(device: torch.device, tmp_path: Path) -> None:
    changes = ("diffusion.class_conditional=true",)
    wanted = batches(CPU, "diffusion", tmp_path, *changes)
    for ours, theirs in zip(batches(device, "diffusion", tmp_path, *changes), wanted, strict=True):
        torch.testing.assert_close(ours.images.cpu(), theirs.images, **ROUNDING)
        assert torch.equal(ours.labels.cpu(), theirs.labels)
        assert torch.equal(ours.ids.cpu(), theirs.ids)


def test_random_numbers_are_equal_on_all_devices(device: torch.device) -> None:
    ids = torch.arange(5000)
    for draw in (counter.bits, counter.uniform):
        assert torch.equal(draw(1, 2, ids.to(device)).cpu(), draw(1, 2, ids))
    assert torch.equal(counter.randint(7, 1, 2, ids.to(device)).cpu(), counter.randint(7, 1, 2, ids))
    assert torch.equal(counter.permutation(5000, 1, 2, device=device).cpu(), counter.permutation(5000, 1, 2))
    torch.testing.assert_close(
        counter.normal(1, 2, ids.to(device)).cpu(), counter.normal(1, 2, ids), rtol=1e-6, atol=1e-7
    )


def test_samples_start_from_the_same_noise_on_all_devices(device: torch.device) -> None:
    ids = torch.arange(3)
    assert torch.equal(starting_noise(5, ids.to(device), 8), starting_noise(5, ids, 8))


@pytest.mark.parametrize(
    "tensor", [torch.arange(6).view(2, 3), torch.empty(0, 4), torch.rand(2, 3, 4, 4).permute(0, 2, 3, 1)]
)
def test_copies_to_the_device_keep_values_and_strides(tensor: torch.Tensor, device: torch.device) -> None:
    there = to_device(tensor, device)
    assert there.device.type == device.type
    assert there.stride() == tensor.stride()
    assert torch.equal(there.cpu(), tensor)
    with torch.inference_mode():
        assert torch.equal(to_device(tensor, device).cpu(), tensor)
