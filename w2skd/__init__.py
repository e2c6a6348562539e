"""Reach a target quality sooner with a weaker model: distil it early in training, or grow the student from it.

The names below are the method for your own training loop. They are imported on first use, so that ``import w2skd``
loads no torch. Everything else is the ``w2skd`` command.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2skd.method.grow import Growth, fill_running_statistics
    from w2skd.method.losses import distillation_kl
    from w2skd.method.schedule import DistillSchedule, Phase, Switch, SwitchedOff
    from w2skd.method.teacher import FrozenTeacher, state_fingerprint
    from w2skd.models.growth.catalog import grow

__all__ = [
    "DistillSchedule",
    "FrozenTeacher",
    "Growth",
    "Phase",
    "Switch",
    "SwitchedOff",
    "__version__",
    "distillation_kl",
    "fill_running_statistics",
    "grow",
    "state_fingerprint",
]

__version__ = "0.1.0"

_MODULES = {
    "distillation_kl": "w2skd.method.losses",
    "DistillSchedule": "w2skd.method.schedule",
    "Phase": "w2skd.method.schedule",
    "Switch": "w2skd.method.schedule",
    "SwitchedOff": "w2skd.method.schedule",
    "FrozenTeacher": "w2skd.method.teacher",
    "fill_running_statistics": "w2skd.method.grow",
    "grow": "w2skd.models.growth.catalog",
    "Growth": "w2skd.method.grow",
    "state_fingerprint": "w2skd.method.teacher",
}
"""Exported name -> module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'w2skd' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
