"""Weak-to-strong distillation: reach a target quality sooner with a frozen weaker teacher early in training.

The names below are the method for your own training loop. They are imported on first use, so that ``import w2skd``
loads no torch. Everything else is the ``w2skd`` command.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from w2skd.method.losses import distillation_kl
    from w2skd.method.schedule import DistillSchedule, Phase, Switch, SwitchedOff
    from w2skd.method.teacher import FrozenTeacher, state_fingerprint

__all__ = [
    "DistillSchedule",
    "FrozenTeacher",
    "Phase",
    "Switch",
    "SwitchedOff",
    "__version__",
    "distillation_kl",
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
    "state_fingerprint": "w2skd.method.teacher",
}
"""Exported name -> module that defines it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'w2skd' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
