from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from w2skd.recipe.evaluation import Metric
from w2skd.records.rows import EvalRow, EventRow, StepRow
from w2skd.runs.progress import ProgressView

TOP1 = Metric("top1", higher_is_better=True, is_share=True)
LOSS, FID = (Metric(name, higher_is_better=False) for name in ("loss", "fid"))


def clock(train: float = 0.0, teacher: float = 0.0, evaluate: float = 0.0, compile_: float = 0.0) -> dict[str, float]:
    return {
        "train": train,
        "teacher": teacher,
        "data": 0.0,
        "evaluate": evaluate,
        "checkpoint": 0.0,
        "compile": compile_,
    }


def step_row(step: int, seconds: dict[str, float] | None = None, lambda_: float = 1.0) -> StepRow:
    parts = {"task.cross_entropy": 1.25} | ({"distill.kl": 0.5} if lambda_ else {})
    loss = 1.25 + 0.5 * lambda_
    return StepRow(step, step / 100, step * 64, loss, parts, lambda_, 0.1, seconds or clock(train=step * 0.01))


def eval_row(step: int, value: float, seconds: dict[str, float] | None = None, metric: str = "top1") -> EvalRow:
    return EvalRow(step, step / 100, step * 64, {metric: value}, seconds or clock(train=step * 0.01))


def teacher_row(value: float = 0.658, metric: str = "top1") -> EventRow:
    return EventRow(0, "teacher", {"metrics": {metric: value}, "checkpoint": "old/model.safetensors"})


def make(terminal: bool = False, quiet: bool = False, **changes: Any) -> tuple[ProgressView, StringIO]:
    output = StringIO()
    console = Console(file=output, width=100, force_terminal=terminal, color_system=None, legacy_windows=False)
    arguments: dict[str, Any] = {
        "title": "demo w2s seed 0",
        "total_steps": 1200,
        "steps_per_epoch": 100,
        "metric": TOP1,
    }
    return ProgressView(**{**arguments, **changes}, quiet=quiet, console=console), output


def panel(view: ProgressView, width: int = 80) -> list[str]:
    """The lines of the live panel, without cursor movements."""
    console = Console(file=StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(view._panel())
    return [line.rstrip() for line in capture.get().splitlines()]


def test_without_a_terminal_every_row_is_one_plain_line() -> None:
    view, output = make()
    rows = [
        teacher_row(),
        step_row(50),
        step_row(100),
        eval_row(100, 0.612),
        EventRow(100, "distillation_off", {"reason": "ended", "epoch": 1.0}),
        EventRow(100, "non_finite", {"steps": [98, 99], "ids": [1]}),
        EventRow(100, "resumed", {"lost_steps": 7}),
        EventRow(1200, "finished", {"best": 0.7, "best_step": 1100}),
        EventRow(1200, "something_new", {"key": 1}),
    ]
    with view:
        for number, row in enumerate(rows, start=1):
            view.show(row, phase="hold")
            assert output.getvalue().count("\n") == number + 1, row  # one line is the title
    assert output.getvalue().isascii()
    assert "\x1b" not in output.getvalue()
    assert "\r" not in output.getvalue()


def test_a_plain_line_is_not_wrapped_and_flushed_at_once() -> None:
    flushed: list[str] = []

    class File(StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    console = Console(file=File(), width=40)
    view = ProgressView(title="t", total_steps=10, steps_per_epoch=5, metric=TOP1, quiet=False, console=console)
    with view:
        view.show(step_row(5), phase="hold")
    line = flushed[-1].splitlines()[-1]
    assert len(line) > 120
    assert line.startswith("step 5/10")


def test_a_progress_line_tells_loss_parts_lambda_rate_and_time_left() -> None:
    view, output = make()
    with view:
        view.show(step_row(600, lambda_=0.5), phase="decay")
    line = output.getvalue().splitlines()[-1]
    assert "step 600/1,200  epoch 6.0" in line
    assert "loss 1.5000 (task.cross_entropy 1.2500, distill.kl 0.5000)" in line
    assert "distillation decay, lambda 0.5" in line
    assert "lr 0.1" in line
    assert "6,400 examples/s" in line  # 64 examples in 10 ms
    assert line.endswith("6 s left")


def test_a_run_without_a_teacher_says_nothing_of_distillation() -> None:
    view, output = make()
    with view:
        view.show(step_row(100, lambda_=0.0))
        view.show(eval_row(100, 0.5))
        assert not any("distil" in line or "teacher" in line for line in panel(view))
    assert "distil" not in output.getvalue()
    assert "teacher" not in output.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_validations_stay_as_lines(terminal: bool) -> None:
    view, output = make(terminal=terminal)
    with view:
        view.show(teacher_row())
        for step, value in ((300, 0.612), (325, 0.6)):
            view.show(eval_row(step, value))
    assert "epoch  3.0  top1 61.2%  teacher 65.8%  best 61.2%\n" in output.getvalue()
    assert "epoch 3.25  top1 60.0%  teacher 65.8%  best 61.2%\n" in output.getvalue()


def test_the_best_of_a_loss_is_the_lowest_and_never_nan() -> None:
    view, output = make(metric=LOSS)
    with view:
        for step, value in ((100, float("nan")), (200, 1.5), (300, 1.7)):
            view.show(eval_row(step, value, metric="loss"))
    lines = output.getvalue().splitlines()
    assert lines[-3].endswith("loss nan")
    assert lines[-1].endswith("loss 1.7  best 1.5")


SURPASSED = {"reason": "surpassed", "student": 0.712, "teacher": 0.709}


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({**SURPASSED, "patience": 2}, "off since epoch 7.0: 71.2% > 70.9% twice"),
        ({**SURPASSED, "patience": 3}, "off since epoch 7.0: 71.2% > 70.9% 3 times"),
        (SURPASSED, "off since epoch 7.0: 71.2% > 70.9%"),
        ({"reason": "ended", "student": None, "teacher": 0.709}, "off since epoch 7.0: schedule ended"),
        ({"reason": "surpassed"}, "off since epoch 7.0: surpassed"),
    ],
)
@pytest.mark.parametrize("epoch", [{"epoch": 7.0}, {}])
def test_why_distillation_went_off(details: dict[str, object], expected: str, epoch: dict[str, float]) -> None:
    view, output = make()
    with view:
        view.show(step_row(700), phase="hold")
        view.show(EventRow(700, "distillation_off", {**details, **epoch}), phase="off")
        assert f"distillation  {expected}" in panel(view)
    assert output.getvalue().splitlines()[-1] == f"distillation {expected}"


def test_a_run_with_its_length_in_steps_shows_positions_in_steps() -> None:
    view, output = make(unit="step", metric=FID, total_steps=30_000)
    with view:
        view.show(teacher_row(60.125, "fid"))
        view.show(eval_row(2000, 151.75, metric="fid"), phase="hold")
        view.show(eval_row(16_000, 41.25, metric="fid"), phase="hold")
        details = {"reason": "surpassed", "student": 41.25, "teacher": 60.125, "patience": 2, "epoch": 160.0}
        view.show(EventRow(16_000, "distillation_off", details), phase="off")
        view.show(EventRow(30_000, "finished", {"best": 12.3456, "best_step": 28_000}))
    said = output.getvalue().splitlines()
    assert said[1:5] == [
        "teacher's fid 60.12",
        "step  2,000  fid 151.8  teacher 60.12  best 151.8",
        "step 16,000  fid 41.25  teacher 60.12  best 41.25",
        "distillation off since step 16,000: 41.25 < 60.12 twice",
    ]
    assert said[5].startswith("finished: best fid 12.35 at step 28,000, ")
    assert panel(view)[-1].split() == ["fid", "now", "41.25,", "best", "41.25,", "teacher", "60.12"]


def test_a_lower_metric_surpasses_from_below() -> None:
    view, output = make(metric=LOSS)
    with view:
        view.show(EventRow(700, "distillation_off", {"reason": "surpassed", "student": 1.1, "teacher": 1.25}))
    assert "1.1 < 1.25" in output.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_events_and_notes_only_and_says_whose(terminal: bool) -> None:
    view, output = make(terminal=terminal, quiet=True)
    with view:
        view.show(teacher_row())
        view.show(step_row(100))
        view.show(eval_row(100, 0.5))
        view.show(EventRow(1200, "finished", {"best": 0.7, "best_step": 1100}))
    assert output.getvalue().splitlines() == [
        "demo w2s seed 0: teacher's top1 65.8%",
        "demo w2s seed 0: finished: best top1 70.0% at epoch 11.0, 1 s (0% in validation)",
    ]


def test_the_end_tells_best_time_and_share_of_validation() -> None:
    view, output = make()
    with view:
        view.show(eval_row(1200, 0.7, clock(train=90.0, evaluate=30.0)))
        view.show(EventRow(1200, "finished", {"best": 0.71, "best_step": 1100}))
    assert output.getvalue().splitlines()[-1] == "finished: best top1 71.0% at epoch 11.0, 2.0 min (25% in validation)"


def test_the_end_tells_a_long_warm_up_such_as_compilation() -> None:
    view, output = make()
    with view:
        view.show(eval_row(1200, 0.7, clock(train=60.0, evaluate=30.0, compile_=30.0)))
        view.show(EventRow(1200, "finished", {"best": 0.71, "best_step": 1100}))
    assert output.getvalue().endswith("2.0 min (25% in validation, 25% warming up)\n")


def test_speed_is_that_of_the_last_rows_without_validation_and_compilation() -> None:
    view, _ = make()
    with view:
        for step in range(10, 210, 10):  # 1 s per step for 100 steps, then 0.1 s
            train = min(step, 100) * 1.0 + max(step - 100, 0) * 0.1
            view.show(step_row(step, clock(train=train, evaluate=float(step), compile_=50.0)))
        assert panel(view)[-1].startswith("pace          640 examples/s, lr 0.1, ")


def test_time_left_counts_steps_to_come_with_validations_as_so_far() -> None:
    view, output = make()
    with view:
        view.show(step_row(600, clock(train=40.0, teacher=20.0)))
        assert output.getvalue().endswith(" 60 s left\n")
        view.show(eval_row(600, 0.5, clock(train=40.0, teacher=20.0, evaluate=15.0)))
        assert panel(view)[0].endswith(" 75 s left")


def test_the_speed_of_a_resumed_run_is_that_of_its_kept_work() -> None:
    view, output = make()
    with view:
        view.show(EventRow(600, "resumed", {"lost_steps": 3}))
        assert "step 600/1,200  epoch 6.0/12" in panel(view)[1]
        view.show(step_row(700, clock(train=70.0)))
    assert "640 examples/s  50 s left" in output.getvalue()
    assert "resumed at step 600, 3 steps lost" in output.getvalue()


def test_the_panel_fits_80_columns() -> None:
    view, _ = make(title="imagenet_resnet50_with_a_long_name " * 3, total_steps=450_000, steps_per_epoch=5000)
    with view:
        view.show(teacher_row())
        parts = {f"task.part_{index}": 1.0 for index in range(8)}
        view.show(StepRow(440_000, 88.0, 10**9, 1.0, parts, 1.0, 0.1, clock(train=1e6, evaluate=1e5)), phase="hold")
        view.show(EvalRow(440_000, 88.0, 10**9, {"top1": 0.71}, clock(train=1e6, evaluate=1e5)), phase="hold")
        lines = panel(view, width=80)
    assert len(lines) == 6
    assert max(len(line) for line in lines) <= 80
    assert lines[0].endswith("left")
    assert "step 440,000/450,000  epoch 88.0/90" in lines[1]
    assert lines[3] == "distillation  hold, lambda 1"
    assert lines[4] == "top1          now 71.0%, best 71.0%, teacher 65.8%"


def test_the_bar_grows_with_the_steps() -> None:
    view, _ = make()
    with view:
        lengths = []
        for step in (300, 600, 1200):
            view.show(step_row(step))
            lengths.append(len(panel(view)[1].split("  step ")[0].replace("╺", " ").split(" ")[0]))
    assert lengths == sorted(set(lengths))


def test_the_live_panel_moves_and_goes_at_the_end() -> None:
    view, output = make(terminal=True)
    with view:
        view.show(step_row(100), phase="hold")
        assert "step 100/1,200" in output.getvalue()
        view.note("a note")
    assert "a note\n" in output.getvalue()
    assert output.getvalue().rstrip("\n").endswith("\x1b[2K")  # its lines are erased


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    view, output = make(terminal=True)
    with view:
        view.show(step_row(100))
    assert "\x1b" not in output.getvalue()
    assert "step 100/1,200" in output.getvalue()


def test_brackets_are_text_not_markup() -> None:
    view, output = make()
    with view:
        view.note("took [bold]3[/bold] :tada: images")
    assert output.getvalue().endswith("took [bold]3[/bold] :tada: images\n")


def test_it_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    view = ProgressView(title="t", total_steps=10, steps_per_epoch=5, metric=TOP1, quiet=False)
    with view:
        view.show(step_row(5))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 5/10" in captured.err
