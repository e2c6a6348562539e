"""What all contenders of `peers.py` share: models, optimizer settings, premade batches and image files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from w2skd.models.catalog import build_classifier

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOMENTUM, WEIGHT_DECAY, NESTEROV = 0.9, 5e-4, True
TINY = "tiny"


class Contender(Protocol):
    """A way to train a student by distillation.

    Attributes:
        student: the student, not compiled.
    """

    student: nn.Module

    def run(self, steps: int) -> None:
        """Take a multiple of `Setting.log_every` steps, continuing where the previous call ended."""


@dataclass(frozen=True)
class Setting:
    """The training that every contender does. It is sent to the contenders as JSON.

    Attributes:
        student: name of the student in w2skd's catalog, or ``tiny``.
        teacher: name of the teacher.
        weights: folder with the initial weights, ``student.pt`` and ``teacher.pt``, and ``batches.pt``.
        classes: number of classes.
        size_px: side of the images.
        batch_size: examples per step.
        log_every: interval of log rows in steps; `Contender.run` takes multiples of it.
        data: image folder with ``train`` and ``test``; None trains on the premade batches.
        feed: w2skd's ``data.feed``.
    """

    student: str
    teacher: str
    weights: str
    classes: int
    size_px: int
    batch_size: int
    log_every: int
    data: str | None = None
    feed: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    workers: int = 1
    lr: float = 0.05
    temperature: float = 2.0

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    def build(self, role: str) -> nn.Module:
        """Build the ``student`` or the ``teacher`` with its initial weights, on the device."""
        model = build(self.student if role == "student" else self.teacher, self.classes)
        model.load_state_dict(torch.load(Path(self.weights) / f"{role}.pt", weights_only=True))
        return model.to(self.torch_device).train(role == "student")

    def premade(self) -> list[tuple[Tensor, Tensor]]:
        """Return normalised images and labels on the device."""
        batches = torch.load(Path(self.weights) / "batches.pt", weights_only=True)
        return [(images.to(self.torch_device), labels.to(self.torch_device)) for images, labels in batches]

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def augmentations(self) -> list[Any]:
        """Return w2skd's ``crop`` and ``flip`` as torchvision's transforms of PIL images."""
        padding = self.size_px // 8
        crop = transforms.RandomCrop(self.size_px, padding=padding, padding_mode="reflect")
        return [crop, transforms.RandomHorizontalFlip()]

    def train_folder(self) -> ImageFolder:
        """Open the training images as torchvision users do."""
        assert self.data is not None
        last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        return ImageFolder(f"{self.data}/train", transforms.Compose([*self.augmentations(), *last]))

    def loader_options(self) -> dict[str, Any]:
        """Return the arguments of a `DataLoader` for training, apart from data and order."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.workers,
            "drop_last": True,
            "persistent_workers": self.workers > 0,
            "pin_memory": self.torch_device.type == "cuda",
        }

    def loader(self) -> DataLoader[Any] | list[tuple[Tensor, Tensor]]:
        """Return the batches of an epoch, as a torchvision user would load them."""
        if self.data is None:
            return self.premade()
        return DataLoader(self.train_folder(), shuffle=True, **self.loader_options())


def build(name: str, classes: int) -> nn.Module:
    """Build a freshly initialised classifier on the CPU.

    ``tiny`` takes so little time that the data pipeline dominates a step even on a CPU.
    """
    if name != TINY:
        return build_classifier(name, classes)
    features = (nn.Conv2d(3, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*features, nn.Linear(16, classes))


def advance(steps: Iterator[None], count: int) -> None:
    """Take `count` steps of a generator that yields after every step."""
    for _ in range(count):
        next(steps)
