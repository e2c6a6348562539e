"""The process that trains: its device, its rank, its clock and its stop requests."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from w2skd.platform.ranks import Ranks
from w2skd.training.clock import Clock


@dataclass(frozen=True)
class Process:
    """A training process, as the engine sees it.

    Attributes:
        device: device of the student, the teacher and the batches.
        ranks: this process among the ranks of the run.
        clock: measures the time of each segment.
        should_stop: returns whether to end the run with a checkpoint. Called after every step with a single rank, and
            at log rows with several.
    """

    device: torch.device
    ranks: Ranks = Ranks()
    clock: Clock = field(default_factory=Clock)
    should_stop: Callable[[], bool] = lambda: False
