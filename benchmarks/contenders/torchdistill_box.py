"""torchdistill: a `DistillationBox` from a configuration, stepped as in its image-classification example."""

import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import torch
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchdistill.misc.log import MetricLogger, SmoothedValue

from contenders.setting import MOMENTUM, NESTEROV, WEIGHT_DECAY, Setting, advance


class TorchdistillBox:
    """See `contenders.setting.Contender`."""

    def __init__(self, setting: Setting):
        self.student = setting.build("student")
        # The box leaves the teacher's mode to its caller.
        student, teacher = self.student, setting.build("teacher").eval()
        if setting.compile:
            student, teacher = torch.compile(student), torch.compile(teacher)
        folders = {} if setting.data is None else {"train": setting.train_folder()}
        self._box = get_distillation_box(
            teacher, student, folders, _configuration(setting), setting.torch_device, None, False, 1
        )
        if setting.data is None:
            self._box.train_data_loader = [(images, labels, {}) for images, labels in setting.premade()]
        self._setting = setting
        self._steps = self._train()

    def run(self, steps: int) -> None:
        advance(self._steps, steps)

    def _train(self) -> Iterator[None]:
        for epoch in count():
            self._box.pre_epoch_process(epoch=epoch)
            yield from self._train_epoch(self._box.train_data_loader, epoch)
            self._box.post_epoch_process()

    def _train_epoch(self, loader: Sequence[Any], epoch: int) -> Iterator[None]:
        meters, device = MetricLogger(delimiter="  "), self._setting.torch_device
        meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for images, labels, extra in meters.log_every(loader, self._setting.log_every, f"Epoch: [{epoch}]"):
            began = time.time()
            images, labels = images.to(device), labels.to(device)
            with self._setting.autocast():
                loss = self._box.forward_process(images, labels, extra)
            self._box.post_forward_process(loss=loss)
            meters.update(loss=loss.item(), lr=self._box.optimizer.param_groups[0]["lr"])
            meters.meters["img/s"].update(len(images) / (time.time() - began))
            if torch.isnan(loss) or torch.isinf(loss):
                raise ValueError(f"loss = {loss}")
            yield


def _configuration(setting: Setting) -> dict[str, Any]:
    whole_model = {"path": ".", "io": "output"}
    outputs = {f"{role}_module_{key}": value for role in ("student", "teacher") for key, value in whole_model.items()}
    loss = {"temperature": setting.temperature, "alpha": 1.0, "beta": 1.0, "reduction": "batchmean", **outputs}
    sgd = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "nesterov": NESTEROV, "fused": True}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": setting.loader_options(),
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {"lr": setting.lr, **sgd}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
        },
    }
