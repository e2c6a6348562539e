"""The Rich display of a run: a live panel on a terminal, one plain line per row in a batch script.

Everything goes to standard error, because commands print their results to standard output.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from w2skd.recipe.evaluation import Metric
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, training_seconds
from w2skd.report import units

_RECENT_ROWS = 10
"""Step rows over which the speed is averaged."""

_LONG_WARM_UP_S = 10.0
"""Shortest warm-up whose share of the time is shown at the end."""


@dataclass(kw_only=True)
class ProgressView:
    """Show a run's rows as they come; use as a context manager.

    On a terminal, validations and events stay in the scrollback above a live panel, which is redrawn at every row.
    Elsewhere every row is one line without control codes, flushed at once.

    Attributes:
        title: names the run, such as ``demo w2s seed 0``.
        total_steps: length of the run in optimizer steps.
        steps_per_epoch: optimizer steps per pass over the training set.
        metric: which of a validation's metrics to show.
        quiet: show events only.
        unit: unit in which positions in the run are shown.
        console: where to print.
    """

    title: str
    total_steps: int
    steps_per_epoch: int
    metric: Metric
    quiet: bool
    unit: Literal["epoch", "step"] = "epoch"
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    _step: int = field(default=0, init=False)
    _epoch: float = field(default=0.0, init=False)
    _last: StepRow | None = field(default=None, init=False)
    _phase: str | None = field(default=None, init=False)
    _off: str | None = field(default=None, init=False)
    _teacher: float | None = field(default=None, init=False)
    _value: float | None = field(default=None, init=False)
    _best: float | None = field(default=None, init=False)
    _live: Live | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._total_epochs = self.total_steps / self.steps_per_epoch
        self._pace = _Pace(self.total_steps)

    def __enter__(self) -> Self:
        if self.quiet:
            return self
        epochs = units.epochs(self._total_epochs)
        length = f"{self.total_steps:,} steps, {epochs} epoch{'' if epochs == '1' else 's'}"
        self.note(f"{self.title}: {length}", "bold")
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._panel,
                console=self.console,
                auto_refresh=False,  # a refresh thread would be forked into data workers
                transient=True,
                redirect_stdout=False,
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, row: Row, *, phase: str | None = None) -> None:
        """Show a row.

        Args:
            row: what happened.
            phase: of the distillation, such as ``hold``; None in a run without a teacher.
        """
        self._phase = phase or self._phase
        match row:
            case StepRow():
                self._show_step(row)
            case EvalRow():
                self._show_validation(row)
            case EventRow():
                self._show_event(row)
        if self._live is not None:
            self._live.refresh()

    def note(self, text: str, style: str = "") -> None:
        """Print one line, however long, above the panel."""
        self.console.print(Text(text, style), soft_wrap=True)
        self.console.file.flush()

    def _show_step(self, row: StepRow) -> None:
        self._pace.add(row)
        self._step, self._epoch, self._last = row.step, row.epoch, row
        if self._live is None and not self.quiet:
            words = [f"step {row.step:,}/{self.total_steps:,}", f"epoch {_epochs(row.epoch)}"]
            words += [f"loss {_loss(row)}"]
            words += [f"distillation {self._phase_and_weight(row)}"] if self._phase else []
            words += [f"lr {row.lr:.3g}", *self._pace.speed, f"{units.duration(self._pace.seconds_left)} left"]
            self.note("  ".join(words))

    def _show_validation(self, row: EvalRow) -> None:
        self._pace.add(row)
        self._step, self._epoch = row.step, row.epoch
        value = row.metrics[self.metric.name]
        self._value = value
        if not math.isnan(value) and (self._best is None or self.metric.is_better(value, self._best)):
            self._best = value
        if not self.quiet:
            words = [self._place(row.step, row.epoch, aligned=True), f"{self.metric.name} {self._level(value)}"]
            words += [f"teacher {self._level(self._teacher)}"] if self._teacher is not None else []
            words += [f"best {self._level(self._best)}"] if self._best is not None else []
            self.note("  ".join(words))

    def _show_event(self, row: EventRow) -> None:
        self._step = max(self._step, row.step)
        match row.name:
            case "teacher":
                self._teacher = (row.details.get("metrics") or {}).get(self.metric.name)
            case "resumed":
                self._epoch = self._total_epochs * row.step / self.total_steps
            case "distillation_off":
                self._off = self._why_off(row)
        text = self._event(row)
        self.note(f"{self.title}: {text}" if self.quiet else text, "yellow" if row.name == "non_finite" else "cyan")

    def _event(self, row: EventRow) -> str:
        """Describe an event in one line."""
        details = row.details
        match row.name:
            case "teacher" if self._teacher is not None:
                return f"teacher's {self.metric.name} {self._level(self._teacher)}"
            case "distillation_off":
                return f"distillation {self._off}"
            case "resumed":
                lost = details.get("lost_steps")
                return f"resumed at step {row.step:,}" + (f", {lost:,} steps lost" if lost else "")
            case "non_finite":
                steps = ", ".join(str(step) for step in details.get("steps", [row.step]))
                return f"loss or gradient not finite at step {steps}: update suppressed"
            case "rescaled":
                return f"loss scale now {details.get('loss_scale'):g}, {details.get('skipped_steps')} steps skipped"
            case "finished":
                return self._finished(row)
            case _:
                rest = ", ".join(f"{key} {value}" for key, value in details.items())
                return f"{row.name} at step {row.step:,}" + (f": {rest}" if rest else "")

    def _finished(self, row: EventRow) -> str:
        best, best_step = row.details.get("best"), row.details.get("best_step")
        words = []
        if best is not None and best_step is not None:
            words.append(f"best {self.metric.name} {self._level(best)} at {self._place(best_step)}")
        if self._pace.seconds > 0:
            shares = f"{self._pace.validation_share:.0%} in validation"
            if self._pace.warm_up_s >= _LONG_WARM_UP_S:
                shares += f", {self._pace.warm_up_s / self._pace.seconds:.0%} warming up"
            words.append(f"{units.duration(self._pace.seconds)} ({shares})")
        return f"finished: {', '.join(words)}" if words else "finished"

    def _why_off(self, row: EventRow) -> str:
        """Return ``off since epoch 7.0: 71.2% > 70.9% twice`` or ``off since epoch 12.0: schedule ended``."""
        details = row.details
        student, teacher, patience = details.get("student"), details.get("teacher"), details.get("patience")
        if details.get("reason") == "ended":
            why = "schedule ended"
        elif student is None or teacher is None:
            why = str(details.get("reason", "reason unknown"))
        else:
            why = f"{self._level(student)} {'>' if self.metric.higher_is_better else '<'} {self._level(teacher)}"
            why += {None: "", 1: "", 2: " twice"}.get(patience, f" {patience} times")
        return f"off since {self._place(row.step, details.get('epoch'))}: {why}"

    def _phase_and_weight(self, row: StepRow) -> str:
        return "off" if self._phase == "off" else f"{self._phase}, lambda {row.lambda_:.3g}"

    def _level(self, value: float | None) -> str:
        return units.level(value, self.metric)

    def _place(self, step: int, epoch: float | None = None, *, aligned: bool = False) -> str:
        """Return ``epoch 3.0``, or ``step 6,000`` in a run whose length is given in steps."""
        if self.unit == "step":
            here, end = f"{step:,}", f"{self.total_steps:,}"
        else:
            here = _epochs(self._total_epochs * step / self.total_steps if epoch is None else epoch)
            end = _epochs(self._total_epochs)
        return f"{self.unit} {here.rjust(len(end)) if aligned else here}"

    def _panel(self) -> RenderableType:
        """Return the live part, at most six lines."""
        left = units.duration(self._pace.seconds_left) + " left" if self._last is not None else "starting"
        head = Table.grid(expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(Text(self.title, "bold"), left)

        bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(total=self.total_steps, completed=self._step, complete_style="cyan", finished_style="cyan"),
            f"step {self._step:,}/{self.total_steps:,}  epoch {self._epoch:.1f}/{units.epochs(self._total_epochs)}",
        )

        facts = Table.grid(padding=(0, 2, 0, 0))
        facts.add_column(style="dim", no_wrap=True, min_width=len("distillation"))
        facts.add_column(no_wrap=True, overflow="ellipsis")
        for name, value in self._facts().items():
            facts.add_row(name, Text(value))
        return Group(head, bar, facts)

    def _facts(self) -> dict[str, str]:
        facts: dict[str, str] = {}
        if self._last is not None:
            facts["loss"] = _loss(self._last)
        if self._phase is not None:
            known = self._phase_and_weight(self._last) if self._last is not None else self._phase
            facts["distillation"] = self._off or known
        levels = {"now": self._value, "best": self._best, "teacher": self._teacher}
        shown = [f"{name} {self._level(value)}" for name, value in levels.items() if value is not None]
        if shown:
            facts[self.metric.name] = ", ".join(shown)
        if self._last is not None:
            share = f"{self._pace.validation_share:.0%} of the time in validation"
            facts["pace"] = ", ".join([*self._pace.speed, f"lr {self._last.lr:.3g}", share])
        return facts


def _loss(row: StepRow) -> str:
    """Return the loss and its parts, unsummed, because lambda may have changed between the averaged steps."""
    parts = ", ".join(f"{name} {value:.4f}" for name, value in row.parts.items())
    return f"{row.loss:.4f}" + (f" ({parts})" if parts else "")


def _epochs(epoch: float) -> str:
    """Return ``3.0``, or ``3.25`` where one decimal is not enough."""
    return f"{epoch:.1f}" if round(epoch, 1) == round(epoch, 2) else f"{epoch:.2f}"


class _Pace:
    """The speed of a run, from the cumulative clocks of its rows.

    The clocks count kept work only, also across resumes, so step 0 at 0 s is always a valid point.
    """

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._points: deque[tuple[int, int, float]] = deque([(0, 0, 0.0)], maxlen=_RECENT_ROWS + 1)
        self._clock: dict[str, float] = {}
        self._step = 0

    def add(self, row: StepRow | EvalRow) -> None:
        """Add a row and its clock."""
        self._clock, self._step = row.clock, row.step
        if isinstance(row, StepRow):
            self._points.append((row.step, row.examples, training_seconds(row.clock)))

    @property
    def seconds(self) -> float:
        """Total time of the run so far."""
        return sum(self._clock.values())

    @property
    def validation_share(self) -> float:
        """Share of the total time spent in validations."""
        return self._clock.get("evaluate", 0.0) / self.seconds if self.seconds > 0 else 0.0

    @property
    def warm_up_s(self) -> float:
        """Time of the first steps, which include compilation and the choice of kernels."""
        return self._clock.get("compile", 0.0)

    @property
    def speed(self) -> list[str]:
        """Training examples per second of training time over the last rows, in words; empty before two rows."""
        (_, examples, seconds), (_, last_examples, last_seconds) = self._points[0], self._points[-1]
        if last_seconds <= seconds or last_examples <= examples:
            return []
        speed = (last_examples - examples) / (last_seconds - seconds)
        return [f"{speed:,.0f} examples/s" if speed >= 10 else f"{speed:.2g} examples/s"]

    @property
    def seconds_left(self) -> float:
        """Time of the remaining steps at the recent speed, with as many validations and checkpoints as so far."""
        (step, _, seconds), (last_step, _, last_seconds) = self._points[0], self._points[-1]
        if last_step == step or self._step == 0:
            return 0.0
        overhead = self._clock.get("evaluate", 0.0) + self._clock.get("checkpoint", 0.0)
        seconds_per_step = (last_seconds - seconds) / (last_step - step) + overhead / self._step
        return (self._total_steps - self._step) * seconds_per_step
