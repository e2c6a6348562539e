"""A bare PyTorch loop, as users write it without a library."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from contenders.setting import MOMENTUM, NESTEROV, WEIGHT_DECAY, Setting, advance


class BareLoop:
    """See `contenders.setting.Contender`."""

    def __init__(self, setting: Setting):
        self.student = setting.build("student")
        self._setting = setting
        self._steps = self._train()

    def run(self, steps: int) -> None:
        advance(self._steps, steps)

    def _train(self) -> Iterator[None]:
        setting, device, temperature = self._setting, self._setting.torch_device, self._setting.temperature
        student, teacher = self.student, setting.build("teacher")
        optimizer = torch.optim.SGD(
            student.parameters(),
            setting.lr,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            nesterov=NESTEROV,
            fused=True,
        )
        if setting.compile:
            student, teacher = torch.compile(student), torch.compile(teacher)
        loader = setting.loader()
        while True:
            for images, labels in loader:
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                with setting.autocast():
                    logits = student(images)
                    with torch.no_grad():
                        targets = functional.log_softmax(teacher(images).float() / temperature, dim=1)
                    student_log = functional.log_softmax(logits.float() / temperature, dim=1)
                    kl = functional.kl_div(student_log, targets, reduction="batchmean", log_target=True)
                    loss = functional.cross_entropy(logits, labels) + temperature**2 * kl
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                yield
