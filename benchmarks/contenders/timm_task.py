"""timm: `LogitDistillationTask`, its optimizer factory and loader, stepped as in its training script."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from timm.data import create_dataset, create_loader
from timm.data.transforms import ToNumpy
from timm.optim import create_optimizer_v2
from timm.task import DistillationTeacher, LogitDistillationTask
from timm.utils import AverageMeter
from torch import nn
from torchvision import transforms

from contenders.setting import MEAN, MOMENTUM, STD, WEIGHT_DECAY, Setting, advance


class TimmTask:
    """See `contenders.setting.Contender`."""

    def __init__(self, setting: Setting):
        self.student, teacher = setting.build("student"), setting.build("teacher")
        for model in (self.student, teacher):  # the task reads the normalisation of both
            model.pretrained_cfg = {"mean": MEAN, "std": STD}
        device = setting.torch_device
        self._task = LogitDistillationTask(
            self.student,
            _wrapped(teacher, device),
            criterion=nn.CrossEntropyLoss(),
            distill_loss_weight=1.0,
            task_loss_weight=1.0,
            temperature=setting.temperature,
            device=device,
            verbose=False,
        )
        # timm's "sgd" uses Nesterov momentum. By default it exempts norms and biases from weight decay, unlike the
        # other contenders.
        self._optimizer = create_optimizer_v2(
            self.student,
            opt="sgd",
            lr=setting.lr,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            filter_bias_and_bn=False,
            fused=True,
        )
        if setting.compile:
            self._task.compile()
        self._setting = setting
        self._loader = setting.premade() if setting.data is None else _loader(setting)
        self._steps = self._train()

    def run(self, steps: int) -> None:
        advance(self._steps, steps)

    def _train(self) -> Iterator[None]:
        while True:
            self._task.train()
            yield from self._train_epoch(self._loader)

    def _train_epoch(self, loader: Iterable[Any]) -> Iterator[None]:
        update_time, data_time, losses = AverageMeter(), AverageMeter(), AverageMeter()
        data_began = update_began = time.time()
        self._optimizer.zero_grad()
        for images, labels in loader:
            data_time.update(time.time() - data_began)
            with self._setting.autocast():
                loss = self._task(images, labels)["loss"]
            loss.backward()
            self._optimizer.step()
            losses.update(loss.item(), len(images))
            self._optimizer.zero_grad()
            now = time.time()
            update_time.update(now - update_began)
            update_began = data_began = now
            yield


def _wrapped(teacher: nn.Module, device: torch.device) -> nn.Module:
    return DistillationTeacher(teacher.requires_grad_(False), device=device)


def _loader(setting: Setting) -> Iterable[Any]:
    """Return timm's loader with its prefetcher, but with the augmentation of the other contenders."""
    dataset = create_dataset("", root=setting.data, split="train", is_training=True)
    loader = create_loader(
        dataset,
        input_size=(3, setting.size_px, setting.size_px),
        batch_size=setting.batch_size,
        is_training=True,
        mean=MEAN,
        std=STD,
        num_workers=setting.workers,
        pin_memory=setting.torch_device.type == "cuda",
        device=setting.torch_device,
    )
    dataset.transform = transforms.Compose([*setting.augmentations(), ToNumpy()])
    return loader
