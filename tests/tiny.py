"""The smallest complete experiment, half a second per run on one core, and helpers to inspect its runs."""

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from known import read_run
from safetensors.torch import load_file
from typer.testing import CliRunner

from w2skd.cli.main import app
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow
from w2skd.training.engine import Engine

RECIPE = """\
name: tiny
task: classification
data: {source: shapes, train_examples: 64, eval_examples: 40, image_size: 16}
teacher: {model: cifar_resnet8, train: {steps: 6, lr_schedule: {name: constant}}}
student: {model: small_cnn_weak}
train:
  steps: 30
  batch_size: 16
  optimizer: {name: sgd, lr: 0.01, momentum: 0.9, weight_decay: 5.0e-4, nesterov: true}
  lr_schedule: {name: one_cycle}
  validate_every: 3step
  checkpoint_every: 5step
  log_every: 2
  deterministic: true
distill: {weight: 1.0, temperature: 2.0, warmup: 4step, hold: 8step, decay: 16step, switch: {patience: 8}}
report: {metric: loss, thresholds: [teacher, 2.6, 0.98*baseline]}
"""
"""Epochs begin at steps 0, 4, 8, ...; lambda rises over steps 0-3, holds over 4-11 and falls over 12-27. The teacher
learns so shortly that the student is better at every validation, which ends distillation at the eighth, step 24.
Checkpoints come every third and every fifth step.
"""


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """Error messages; one of several lines counts once."""
        return self.err.split("w2skd: ")[1:]


def w2skd(*arguments: object) -> Outcome:
    """Run a command in this process; raise any exception other than a clean exit."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def done(*arguments: object) -> Outcome:
    """Run a command that must succeed."""
    outcome = w2skd(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(*arguments: object, code: int) -> str:
    """Run a command that must fail with this exit code and a one-line message; return the message."""
    outcome = w2skd(*arguments)
    assert outcome.code == code, (outcome.code, outcome.err)
    assert len(outcome.problems) == 1, outcome.err
    assert outcome.err.endswith(outcome.problems[0])
    (line,) = outcome.problems[0].splitlines()
    assert "Traceback" not in outcome.err
    return line


def recipe_file(folder: Path, text: str = RECIPE) -> Path:
    """Write the recipe into a folder and return its path."""
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def rows(run: Path) -> list[Row]:
    """All rows of a run."""
    return list(read_run(run).rows)


def step_rows(run: Path) -> list[StepRow]:
    """The step rows of a run."""
    return [row for row in rows(run) if isinstance(row, StepRow)]


def evaluations(run: Path) -> list[tuple[int, float, int, Mapping[str, float]]]:
    """The validations of a run, without their clock."""
    return [(row.step, row.epoch, row.examples, row.metrics) for row in rows(run) if isinstance(row, EvalRow)]


def events(run: Path, name: str) -> list[EventRow]:
    """The events of a run with this name."""
    return [row for row in rows(run) if isinstance(row, EventRow) and row.name == name]


def status(run: Path) -> dict[str, Any]:
    """The content of ``status.json``."""
    return json.loads((run / "status.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a finished run."""
    return load_file(run / "model.safetensors")


def assert_same_weights(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Compare weights bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_course(ours: Path, theirs: Path) -> None:
    """The same weights bit for bit, the same validations, the same end of distillation, at the same steps."""
    assert_same_weights(weights(ours), weights(theirs))
    assert evaluations(ours) == evaluations(theirs)
    assert events(ours, "distillation_off") == events(theirs, "distillation_off")
    assert status(ours) == status(theirs)


def contents(folder: Path) -> dict[str, bytes]:
    """Content of every file under a folder, except locks."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished_experiment(folder: Path) -> Path:
    """Create ``tiny.yaml`` and finished teacher, baseline and w2s runs in a folder, once; return the experiment."""
    experiment = folder / "tiny" / "runs"
    if not experiment.exists():
        experiment.parent.mkdir()
        common = ("--recipe", recipe_file(experiment.parent), "--out", experiment, "--quiet")
        done("train-teacher", *common)
        done("distill", *common)
        done("distill", "--baseline", *common)
    return experiment


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make the kernel refuse files larger than `size` bytes, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def at_step(step: int, action: Callable[[Engine], object]) -> Iterator[None]:
    """Call `action` after `step` steps of a training, before the next one."""
    original = Engine._take_step

    def take_step(engine: Engine, *args: Any) -> None:
        if engine.step == step:
            action(engine)
        original(engine, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_take_step", take_step)
        yield


def stopped_at(step: int, *arguments: object) -> None:
    """Run a training to this step and stop it as a scheduler would, with a checkpoint."""
    with at_step(step - 1, lambda _: os.kill(os.getpid(), signal.SIGTERM)):
        assert w2skd(*arguments).code == 75


class Crash(Exception):
    """An error that is not a `UserError`."""


def crashed_at(step: int, *arguments: object) -> None:
    """Run a training to this step and crash it."""

    def crash(_: Engine) -> None:
        raise Crash

    with at_step(step, crash), pytest.raises(Crash):
        w2skd(*arguments)


def run_in(experiment: Path, arm: str = "w2s") -> Path:
    """The run of seed 0."""
    return experiment / arm / "seed0"
