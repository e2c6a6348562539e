"""The Rich view of rows: a live panel on a terminal, one plain line a row in a batch script.

Everything goes to standard error, so that a command may own standard output.
"""

import math
from collections import deque
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from w2skd.records.rows import EvalRow, EventRow, Row, StepRow, training_seconds
from w2skd.report import units

_RECENT_ROWS = 10
"""Progress rows over which the speed is averaged."""

_LONG_S = 10.0
"""How long warming up must take for the end to tell its share."""


class ProgressView:
    """Shows a run's rows as they come. Made by `progress_view`; used as a context manager.

    On a terminal, validations and events stay in the scrollback and the rest is a live panel below them, redrawn at
    every row. Elsewhere every row is one line without control codes, flushed at once.
    """

    def __init__(
        self,
        *,
        title: str,
        total_steps: int,
        steps_per_epoch: int,
        metric: str,
        higher_is_better: bool,
        quiet: bool,
        unit: Literal["epoch", "step"],
        console: Console,
    ):
        self._title = title
        self._total_steps = total_steps
        self._total_epochs = total_steps / steps_per_epoch
        self._metric = metric
        self._higher_is_better = higher_is_better
        self._quiet = quiet
        self._unit = unit
        self._console = console
        self._pace = _Pace(total_steps)
        self._step, self._epoch = 0, 0.0
        self._last: StepRow | None = None
        self._phase: str | None = None
        self._off: str | None = None
        self._teacher: float | None = None
        self._value: float | None = None
        self._best: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._quiet:
            return self
        epochs = units.epochs(self._total_epochs)
        length = f"{self._total_steps:,} steps, {epochs} epoch{'' if epochs == '1' else 's'}"
        self._print(f"{self._title}: {length}", "bold")
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self._panel,
                console=self._console,
                auto_refresh=False,  # a refreshing thread would be forked into data workers
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

    def note(self, text: str) -> None:
        """Print a line that stays, above the panel."""
        self._print(text)

    def _show_step(self, row: StepRow) -> None:
        self._pace.add(row)
        self._step, self._epoch, self._last = row.step, row.epoch, row
        if self._live is None and not self._quiet:
            words = [f"step {row.step:,}/{self._total_steps:,}", f"epoch {self._epochs(row.epoch)}"]
            words += [f"loss {self._loss(row)}"]
            words += [f"distillation {self._phase_and_weight(row)}"] if self._phase else []
            words += [f"lr {row.lr:.3g}", *self._speed(), f"{units.duration(self._pace.seconds_left)} left"]
            self._print("  ".join(words))

    def _show_validation(self, row: EvalRow) -> None:
        self._pace.add(row)
        self._step, self._epoch = row.step, row.epoch
        value = row.metrics[self._metric]
        self._value = value
        if not math.isnan(value) and (self._best is None or self._is_better(value, self._best)):
            self._best = value
        if not self._quiet:
            words = [self._place(row.step, row.epoch, aligned=True), f"{self._metric} {self._level(value)}"]
            words += [f"teacher {self._level(self._teacher)}"] if self._teacher is not None else []
            words += [f"best {self._level(self._best)}"] if self._best is not None else []
            self._print("  ".join(words))

    def _show_event(self, row: EventRow) -> None:
        self._step = max(self._step, row.step)
        match row.name:
            case "teacher":
                self._teacher = (row.details.get("metrics") or {}).get(self._metric)
            case "resumed":
                self._epoch = self._total_epochs * row.step / self._total_steps
            case "distillation_off":
                self._off = self._why_off(row)
        text = self._event(row)
        self._print(f"{self._title}: {text}" if self._quiet else text, "yellow" if row.name == "non_finite" else "cyan")

    def _event(self, row: EventRow) -> str:
        """An event in one line."""
        details = row.details
        match row.name:
            case "teacher" if self._teacher is not None:
                return f"teacher's {self._metric} {self._level(self._teacher)}"
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
            words.append(f"best {self._metric} {self._level(best)} at {self._place(best_step)}")
        if self._pace.seconds > 0:
            shares = f"{self._pace.validation_share:.0%} in validation"
            if self._pace.warming_up_s >= _LONG_S:
                shares += f", {self._pace.warming_up_s / self._pace.seconds:.0%} warming up"
            words.append(f"{units.duration(self._pace.seconds)} ({shares})")
        return f"finished: {', '.join(words)}" if words else "finished"

    def _why_off(self, row: EventRow) -> str:
        """``off since epoch 7.0: 71.2% > 70.9% twice``, ``off since epoch 12.0: schedule ended``."""
        details = row.details
        student, teacher, patience = details.get("student"), details.get("teacher"), details.get("patience")
        if details.get("reason") == "ended":
            why = "schedule ended"
        elif student is None or teacher is None:
            why = str(details.get("reason", "reason unknown"))
        else:
            why = f"{self._level(student)} {'>' if self._higher_is_better else '<'} {self._level(teacher)}"
            why += {None: "", 1: "", 2: " twice"}.get(patience, f" {patience} times")
        return f"off since {self._place(row.step, details.get('epoch'))}: {why}"

    def _phase_and_weight(self, row: StepRow) -> str:
        return "off" if self._phase == "off" else f"{self._phase}, lambda {row.lambda_:.3g}"

    def _loss(self, row: StepRow) -> str:
        """The loss and its terms; a list and no sum, since lambda may have changed between the steps averaged here."""
        terms = ", ".join(f"{name} {value:.4f}" for name, value in row.parts.items())
        return f"{row.loss:.4f}" + (f" ({terms})" if terms else "")

    def _speed(self) -> list[str]:
        speed = self._pace.examples_per_s
        return [f"{speed:,.0f} examples/s" if speed >= 10 else f"{speed:.2g} examples/s"] if speed else []

    def _is_better(self, value: float, other: float) -> bool:
        return value > other if self._higher_is_better else value < other

    def _level(self, value: float | None) -> str:
        return units.level(value, self._metric)

    def _place(self, step: int, epoch: float | None = None, *, aligned: bool = False) -> str:
        """``epoch 3.0``, or ``step 6,000`` where the run's length is told in steps."""
        if self._unit == "step":
            here, end = f"{step:,}", f"{self._total_steps:,}"
        else:
            here = self._epochs(self._total_epochs * step / self._total_steps if epoch is None else epoch)
            end = self._epochs(self._total_epochs)
        return f"{self._unit} {here.rjust(len(end)) if aligned else here}"

    def _epochs(self, epoch: float) -> str:
        """``3.0``, and ``3.25`` where a digit more is there to be told."""
        return f"{epoch:.1f}" if round(epoch, 1) == round(epoch, 2) else f"{epoch:.2f}"

    def _print(self, text: str, style: str = "") -> None:
        """Print one line, however long, as it is."""
        self._console.print(Text(text, style), soft_wrap=True)
        self._console.file.flush()

    def _panel(self) -> RenderableType:
        """The live part, at most six lines."""
        left = units.duration(self._pace.seconds_left) + " left" if self._last is not None else "starting"
        head = Table.grid(expand=True)
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(Text(self._title, "bold"), left)

        bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            ProgressBar(total=self._total_steps, completed=self._step, complete_style="cyan", finished_style="cyan"),
            f"step {self._step:,}/{self._total_steps:,}  epoch {self._epoch:.1f}/{units.epochs(self._total_epochs)}",
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
            facts["loss"] = self._loss(self._last)
        if self._phase is not None:
            known = self._phase_and_weight(self._last) if self._last is not None else self._phase
            facts["distillation"] = self._off or known
        levels = {"now": self._value, "best": self._best, "teacher": self._teacher}
        if any(value is not None for value in levels.values()):
            facts[self._metric] = ", ".join(
                f"{name} {self._level(value)}" for name, value in levels.items() if value is not None
            )
        if self._last is not None:
            share = f"{self._pace.validation_share:.0%} of the time in validation"
            facts["pace"] = ", ".join([*self._speed(), f"lr {self._last.lr:.3g}", share])
        return facts


class _Pace:
    """How fast a run goes, from the cumulative clocks of its rows.

    Their training time counts kept work only, also over interruptions, so that step 0 at 0 s is always a point of it.
    """

    def __init__(self, total_steps: int):
        self._total_steps = total_steps
        self._points: deque[tuple[int, int, float]] = deque([(0, 0, 0.0)], maxlen=_RECENT_ROWS + 1)
        self._clock: dict[str, float] = {}
        self._step = 0

    def add(self, row: StepRow | EvalRow) -> None:
        """Take in a row's clock."""
        self._clock, self._step = row.clock, row.step
        if isinstance(row, StepRow):
            self._points.append((row.step, row.examples, training_seconds(row.clock)))

    @property
    def seconds(self) -> float:
        """All of the run so far."""
        return sum(self._clock.values())

    @property
    def validation_share(self) -> float:
        """Share of the run's time that went into validations."""
        return self._clock.get("evaluate", 0.0) / self.seconds if self.seconds > 0 else 0.0

    @property
    def warming_up_s(self) -> float:
        """Time of the first steps, which pay for compilation and the choice of kernels."""
        return self._clock.get("compile", 0.0)

    @property
    def examples_per_s(self) -> float | None:
        """Training examples a second of training time, over the last rows."""
        (_, examples, seconds), (_, last_examples, last_seconds) = self._points[0], self._points[-1]
        return (last_examples - examples) / (last_seconds - seconds) if last_seconds > seconds else None

    @property
    def seconds_left(self) -> float:
        """The remaining steps at the recent speed, with validations and checkpoints as often as so far."""
        (step, _, seconds), (last_step, _, last_seconds) = self._points[0], self._points[-1]
        if last_step == step or self._step == 0:
            return 0.0
        besides = self._clock.get("evaluate", 0.0) + self._clock.get("checkpoint", 0.0)
        return (self._total_steps - self._step) * ((last_seconds - seconds) / (last_step - step) + besides / self._step)


def progress_view(
    *,
    title: str,
    total_steps: int,
    steps_per_epoch: int,
    metric: str,
    higher_is_better: bool,
    quiet: bool,
    unit: Literal["epoch", "step"] = "epoch",
    console: Console | None = None,
) -> ProgressView:
    """Make the view of one run.

    Args:
        title: names the run, such as ``demo w2s seed 0``.
        total_steps: length of the run in optimizer steps.
        steps_per_epoch: optimizer steps per pass over the training set.
        metric: the one of a validation's metrics to show.
        higher_is_better: its direction.
        quiet: show events only, the end among them.
        unit: in which places of the run are told.
        console: where to; None is standard error.
    """
    return ProgressView(
        title=title,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        metric=metric,
        higher_is_better=higher_is_better,
        quiet=quiet,
        unit=unit,
        console=console or Console(stderr=True, highlight=False),
    )
