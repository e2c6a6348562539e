"""The smallest experiment that has everything, in half a second a run on one core, and what to ask of its runs."""

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
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def problems(self) -> list[str]:
        """The lines with which w2skd says no; a message of several lines counts whole."""
        return self.err.split("w2skd: ")[1:]


def w2skd(*arguments: object) -> Outcome:
    """Run a command in this process. What is no clean exit, and so would be a traceback, is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def done(*arguments: object) -> Outcome:
    """Run a command that must end well."""
    outcome = w2skd(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def refused(*arguments: object, code: int) -> str:
    """Run a command that must end with this exit code and exactly one line to say why; return the line."""
    outcome = w2skd(*arguments)
    assert outcome.code == code, (outcome.code, outcome.err)
    assert len(outcome.problems) == 1, outcome.err
    assert outcome.err.endswith(outcome.problems[0])
    (line,) = outcome.problems[0].splitlines()
    assert "Traceback" not in outcome.err
    return line


def recipe_file(folder: Path, text: str = RECIPE) -> Path:
    """The recipe as a file in a folder."""
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def rows(run: Path) -> list[Row]:
    """All rows of a run."""
    return list(read_run(run).rows)


def step_rows(run: Path) -> list[StepRow]:
    """Its progress."""
    return [row for row in rows(run) if isinstance(row, StepRow)]


def evaluations(run: Path) -> list[tuple[int, float, int, Mapping[str, float]]]:
    """Its validations, without their clock."""
    return [(row.step, row.epoch, row.examples, row.metrics) for row in rows(run) if isinstance(row, EvalRow)]


def events(run: Path, name: str) -> list[EventRow]:
    """Its events of one name."""
    return [row for row in rows(run) if isinstance(row, EventRow) and row.name == name]


def status(run: Path) -> dict[str, Any]:
    """What it says about itself."""
    return json.loads((run / "status.json").read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The finished model."""
    return load_file(run / "model.safetensors")


def assert_same_weights(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Bit for bit."""
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
    """Every file under a folder, to see that nothing changed; locks are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished_experiment(folder: Path) -> Path:
    """A folder with ``tiny.yaml`` and, in ``runs``, its finished teacher, baseline and w2s run; made once a folder."""
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
    """Let the kernel refuse to make a file larger than `size` bytes, as a full disk would."""
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
    """Do something when `step` steps of a training are done and the next is about to be taken."""
    original = Engine._take_step

    def take_step(engine: Engine, *args: Any) -> None:
        if engine.step == step:
            action(engine)
        original(engine, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_take_step", take_step)
        yield


def stopped_at(step: int, *arguments: object) -> None:
    """Run a training until it has a checkpoint of this step, and stop it as a scheduler would."""
    with at_step(step - 1, lambda _: os.kill(os.getpid(), signal.SIGTERM)):
        assert w2skd(*arguments).code == 75


class Crash(Exception):
    """Something that no user can mend."""


def crashed_at(step: int, *arguments: object) -> None:
    """Run a training until this many steps are done, and end it without another word."""

    def crash(_: Engine) -> None:
        raise Crash

    with at_step(step, crash), pytest.raises(Crash):
        w2skd(*arguments)


def run_in(experiment: Path, arm: str = "w2s") -> Path:
    """The run of seed 0."""
    return experiment / arm / "seed0"
