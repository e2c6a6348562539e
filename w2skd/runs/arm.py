"""One arm, from recipe to finished directory: lock, resume, teacher, drain the engine, signals, exit status."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from w2skd.errors import CheckpointError, Interrupted, OutputError, Stopped, TrainingError, UserError
from w2skd.method.schedule import DistillSchedule
from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.models.measure import count_parameters
from w2skd.platform.device import describe_environment, open_device
from w2skd.platform.files import writing
from w2skd.platform.ranks import Ranks, process_group
from w2skd.platform.signals import StopRequest, stop_on_signals
from w2skd.recipe.arms import Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import EventRow
from w2skd.records.rundir import RunDir, State, find_teacher, read_run, run_path
from w2skd.report.summary import teacher_gaps
from w2skd.runs.options import RunOptions
from w2skd.runs.progress import ProgressView, progress_view
from w2skd.runs.resume import Start, check_scored_alike, open_run
from w2skd.runs.setup import Setup, set_up
from w2skd.tasks.base import Evaluation, Remark, Snapshot
from w2skd.training.checkpoint import load_last_checkpoint, rewind_to, save_checkpoint
from w2skd.training.clock import Clock
from w2skd.training.engine import Engine, SaveDue, evaluate
from w2skd.weights.load import save_model


def train_arm(recipe: Recipe, arm: Arm, options: RunOptions, ranks: Ranks) -> Path:
    """Train one arm to its end, going on where an earlier call was cut off. Returns the run's directory.

    Raises:
        Stopped, Interrupted: a signal asked to stop; a checkpoint was written.
        UserError: anything else that the user can mend.
    """
    run = RunDir(run_path(options.out, arm, recipe.seed))
    device = open_device(options.device, ranks)
    if arm == "w2s":
        find_teacher(recipe, options.out)
    with process_group(ranks, device), stop_on_signals() as stop:
        if options.overwrite:
            stop.again = "the same command without --overwrite"
        elif options.named_checkpoint is not None:
            stop.again = "the same command without --resume"
        try:
            start = ranks.on_main(lambda: open_run(run, recipe, arm, options))
            if start.finished and ranks.is_main and not options.quiet:
                Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(f"{run.path}: {start.note}")
            if not start.finished:
                with _determinism(recipe.train_of(arm).deterministic):
                    # What cannot begin leaves what is there as it is, its status too.
                    setup = ranks.on_all(lambda: set_up(recipe, arm, options, ranks))
                    facts = ranks.on_all(setup.describe)  # reads what a feed keeps in memory
                    ranks.on_main(partial(check_scored_alike, run, start, facts, options.out))
                    with _failure_noted(run, recipe, arm, ranks):
                        _train(run, setup, facts, start, options, ranks, stop)
        finally:
            run.close()
    return run.path


def _train(
    run: RunDir,
    setup: Setup,
    facts: dict[str, Any],
    start: Start,
    options: RunOptions,
    ranks: Ranks,
    stop: StopRequest,
) -> None:
    recipe, task, device = setup.recipe, setup.task, setup.device
    checkpoint = start.checkpoint
    clock = Clock(checkpoint["clock"] if checkpoint else None)
    view = progress_view(
        title=f"{recipe.name} {setup.arm} seed {recipe.seed}",
        total_steps=facts["total_steps"],
        steps_per_epoch=task.steps_per_epoch,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        quiet=options.quiet,
        unit="epoch" if setup.train.steps is None else "step",
        console=Console(stderr=True, quiet=not ranks.is_main),
    )
    with view:
        if start.note:
            view.note(start.note)
        ranks.on_main(lambda: _write_start(run, setup, facts, start, view, ranks))
        teacher = teacher_facts = None
        if setup.arm == "w2s":
            teacher, teacher_facts, evaluation = _open_teacher(setup, checkpoint, clock)
            row = EventRow(0, "teacher", teacher_facts)
            if checkpoint is None:
                ranks.on_main(partial(run.append, row))
            view.show(row)
            if ranks.is_main:
                account = [f"teacher: {line}" for line in setup.teacher_account]
                account += [f"teacher: {line}" for line in evaluation.account] if evaluation else []
                for line in [*account, *teacher_gaps(read_run(run.path), options.out, recipe.report.thresholds)]:
                    view.note(line)
                if evaluation and evaluation.snapshot:
                    _draw(evaluation.snapshot, run.pictures / "teacher.png", clock, view)
            del evaluation
        schedule = (
            None if teacher_facts is None else _plan_distillation(setup, facts["total_steps"], teacher_facts, view)
        )
        if setup.train.compile and ranks.is_main:
            view.note("the student is compiled at the first step of each image size: that can take minutes")
        engine = Engine(
            task,
            setup.model,
            train=setup.train,
            seed=recipe.seed,
            device=device,
            ranks=ranks,
            clock=clock,
            teacher=teacher,
            schedule=schedule,
            should_stop=stop,
        )
        del teacher  # the engine's reference is the only one now, so that the switch frees the memory
        if checkpoint is not None:
            engine.load_state_dict(checkpoint["engine"])

        def save(best: bool) -> None:
            with clock.segment("checkpoint"):
                state = {
                    "engine": engine.state_dict(),
                    "recipe": recipe.model_dump(mode="json"),
                    "role": str(setup.role),
                    "details": task.describe_model(),
                    "teacher": teacher_facts,
                    "metrics_offset": run.metrics_offset(),
                    "threads": torch.get_num_threads(),
                    "clock": clock.read(),
                }
                save_checkpoint(run.checkpoints, state, best=best)
            run.set_status(setup.arm, recipe.seed, "running", step=engine.step, total_steps=engine.total_steps)

        _drain(engine, run, clock, view, ranks, stop, save)
        ranks.on_main(lambda: _finish(run, setup, engine, view))


def _drain(
    engine: Engine,
    run: RunDir,
    clock: Clock,
    view: ProgressView,
    ranks: Ranks,
    stop: StopRequest,
    save: Callable[[bool], None],
) -> None:
    """Write and show what the engine yields, and save when it asks."""
    told = set[str]()
    try:
        for item in engine.train():
            match item:
                case SaveDue(best=best, stopping=stopping):
                    ranks.on_main(partial(save, best))
                    if stopping:
                        stop.agree(ranks.gather(stop.signal))
                        raise stop.error(f"at step {engine.step} of {engine.total_steps}")
                case Snapshot(step=step, draw=draw):
                    if ranks.is_main:
                        _draw(draw, run.pictures / f"step_{step:08d}.png", clock, view)
                case Remark(text=text):
                    if text not in told:  # most are the same at every validation
                        view.note(text)
                        told.add(text)
                case row:
                    ranks.on_main(partial(run.append, row))
                    view.show(row, phase=_phase(engine))
    except TrainingError as error:
        raise TrainingError(f"{error}; last good checkpoint: {_newest_checkpoint(run)}") from None


def _draw(draw: Callable[[Path], None], path: Path, clock: Clock, view: ProgressView) -> None:
    """Write a picture. One that cannot be written is told: it is not worth a run, which a full disk ends anyway."""
    with clock.segment("evaluate"):
        try:
            with writing(path.parent):
                path.parent.mkdir(exist_ok=True)
            draw(path)
        except OutputError as error:
            view.note(f"no picture: {error}")


def _finish(run: RunDir, setup: Setup, engine: Engine, view: ProgressView) -> None:
    """Leave the model and the final word."""
    details = {
        "step": engine.step,
        "metric": setup.task.metric.name,
        "best": engine.best,
        "best_step": engine.best_step,
    }
    state = engine.evaluated_model.state_dict()
    details["fingerprint"] = state_fingerprint(state)
    about = {**details, **setup.task.describe_model(), **setup.task.describe_data()}
    save_model(run.model_path, state, setup.recipe, str(setup.role), about)
    row = EventRow(engine.step, "finished", details)
    run.append(row)
    view.show(row)
    run.set_status(
        setup.arm, setup.recipe.seed, "finished", step=engine.step, total_steps=engine.total_steps, best=engine.best
    )


def _write_start(
    run: RunDir,
    setup: Setup,
    facts: dict[str, Any],
    start: Start,
    view: ProgressView,
    ranks: Ranks,
) -> None:
    """Note what is about to run; on a resume, forget what happened after the checkpoint."""
    checkpoint = start.checkpoint
    if start.discard:
        run.clear()
    if start.rewind:
        assert checkpoint is not None
        rewind_to(run.checkpoints, checkpoint)
    lost = run.truncate_metrics(checkpoint["metrics_offset"] if checkpoint else 0)
    environment = {**describe_environment(setup.device, ranks), **facts, "init_from": setup.init_from}
    environment["deterministic"] = setup.train.deterministic
    before = run.environment() if checkpoint else {}
    run.start(setup.recipe, before or environment)
    step = checkpoint["engine"]["step"] if checkpoint else 0
    run.set_status(setup.arm, setup.recipe.seed, "running", step=step, total_steps=facts["total_steps"])
    if checkpoint is not None or lost:
        lost_steps = max([row.step for row in lost], default=step) - step
        changed = {key: environment[key] for key in before if key in environment and before[key] != environment[key]}
        row = EventRow(step, "resumed", {"lost_steps": lost_steps, "changed": changed})
        run.append(row)
        view.show(row)
    if checkpoint is not None and setup.train.deterministic and checkpoint["threads"] != torch.get_num_threads():
        view.note(
            f"the run had {checkpoint['threads']} threads so far and has {torch.get_num_threads()} now: "
            "it will not repeat bit for bit"
        )


def _open_teacher(
    setup: Setup, checkpoint: dict[str, Any] | None, clock: Clock
) -> tuple[FrozenTeacher, dict[str, Any], Evaluation | None]:
    """Freeze the teacher and measure it as the student will be measured; on a resume, hold it to what it was."""
    model, weights = setup.teacher_model, setup.teacher_weights
    assert model is not None
    assert weights is not None
    # Whoever else kept a reference would keep the memory after the switch.
    setup.teacher_model = setup.teacher_weights = None
    teacher = FrozenTeacher(
        model,
        device=setup.device,
        precision=setup.train.precision,
        channels_last=setup.train.channels_last,
        clock=clock,
    )
    fingerprint = state_fingerprint(weights.state)
    if checkpoint is not None:
        known: dict[str, Any] = checkpoint["teacher"]
        if known["fingerprint"] != fingerprint and checkpoint["engine"]["schedule"]["switched_off"] is None:
            raise CheckpointError(
                f"{weights.path}: another teacher than the one that this run began with "
                f"({known['checkpoint']}, sha256 {known['fingerprint'][:12]})"
            )
        return teacher, known, None
    with clock.segment("evaluate"):
        evaluation = evaluate(setup.task, teacher.model, setup.device, setup.train.precision)
    facts = {
        "metrics": evaluation.metrics,
        "checkpoint": str(weights.path),
        "fingerprint": fingerprint,
        "parameters": count_parameters(teacher.model),
        "data_fingerprint": weights.details.get("data_fingerprint"),
    }
    return teacher, facts, evaluation


def _plan_distillation(
    setup: Setup, total_steps: int, teacher_facts: dict[str, Any], view: ProgressView
) -> DistillSchedule:
    section, lengths = setup.recipe.distill, (setup.task.steps_per_epoch, total_steps)
    schedule = DistillSchedule(
        weight=section.weight,
        warmup_steps=section.warmup.steps(*lengths),
        hold_steps=section.hold.steps(*lengths),
        decay_steps=section.decay.steps(*lengths),
        higher_is_better=setup.task.metric.higher_is_better,
        teacher_value=teacher_facts["metrics"][setup.task.metric.name],
        margin=section.switch.margin,
        patience=section.switch.patience,
    )
    if schedule.end_step > total_steps:
        view.note(
            f"warm-up, hold and decay take {schedule.end_step:,} steps, the run has {total_steps:,}: "
            "unless the student surpasses its teacher, distillation lasts to the end"
        )
    return schedule


def _phase(engine: Engine) -> str | None:
    return None if engine.schedule is None else str(engine.schedule.phase_at(engine.step))


def _newest_checkpoint(run: RunDir) -> str:
    checkpoint, _ = load_last_checkpoint(run.checkpoints)
    return f"{run.checkpoints / 'last.pt'} of step {checkpoint['engine']['step']}" if checkpoint else "none yet"


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Only kernels that repeat bit for bit, for the block."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _failure_noted(run: RunDir, recipe: Recipe, arm: Arm, ranks: Ranks) -> Iterator[None]:
    """Leave the truth in ``status.json`` whichever way a run ends; torchrun turns every exit code into 1."""
    try:
        yield
    except BaseException as error:
        state: State = "stopped" if isinstance(error, Stopped | Interrupted | KeyboardInterrupt) else "failed"
        if ranks.is_main and (run.path / "status.json").exists():
            try:
                known = {key: run.status().get(key) for key in ("step", "total_steps")}
                run.set_status(arm, recipe.seed, state, **known, reason=str(error) or type(error).__name__)
            except UserError:
                pass  # the disk that the run failed on; the error itself is on its way
        raise
