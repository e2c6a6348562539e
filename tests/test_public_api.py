"""The public names of ``import w2skd``, and what importing them loads."""

import subprocess
import sys
from pathlib import Path

import pytest

import w2skd
from w2skd.method.grow import Growth, fill_running_statistics
from w2skd.method.losses import distillation_kl
from w2skd.method.schedule import DistillSchedule, Phase, Switch, SwitchedOff
from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.models.growth.catalog import grow

ROOT = Path(__file__).resolve().parent.parent

EXPORTED = {
    "DistillSchedule": DistillSchedule,
    "FrozenTeacher": FrozenTeacher,
    "Growth": Growth,
    "Phase": Phase,
    "Switch": Switch,
    "SwitchedOff": SwitchedOff,
    "distillation_kl": distillation_kl,
    "fill_running_statistics": fill_running_statistics,
    "grow": grow,
    "state_fingerprint": state_fingerprint,
}


def test_the_exported_names_are_these() -> None:
    assert set(w2skd.__all__) == {*EXPORTED, "__version__"}
    assert set(w2skd.__all__) <= set(dir(w2skd))
    assert {name: getattr(w2skd, name) for name in EXPORTED} == EXPORTED
    assert all(value.__doc__ for value in EXPORTED.values())


def test_other_names_are_missing() -> None:
    with pytest.raises(AttributeError, match="module 'w2skd' has no attribute 'nothing'"):
        w2skd.nothing  # noqa: B018


def test_the_import_alone_loads_no_torch_and_the_schedule_needs_none() -> None:
    code = "import sys, w2skd; dir(w2skd); w2skd.DistillSchedule; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_package_is_typed() -> None:
    assert (Path(w2skd.__file__).parent / "py.typed").is_file()
