"""One arm of an experiment, from its recipe to a finished run directory."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from w2skd.errors import Interrupted, OutputError, Stopped, TrainingError, UserError
from w2skd.method.schedule import DistillSchedule, Switch
from w2skd.method.teacher import FrozenTeacher, state_fingerprint
from w2skd.models.measure import count_parameters
from w2skd.platform.device import describe_environment, deterministic_kernels, float32_math, open_device
from w2skd.platform.files import writing
from w2skd.platform.ranks import Ranks, process_group
from w2skd.platform.signals import StopRequest, stop_on_signals
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.names import RunName
from w2skd.records.rows import EventRow
from w2skd.records.rundir import RunDir, State, find_teacher, read_run
from w2skd.report.summary import teacher_gaps
from w2skd.runs.branch import branch_steps, copy_records, keep_for_branch
from w2skd.runs.growing import fill_new_statistics
from w2skd.runs.options import RunOptions
from w2skd.runs.progress import ProgressView
from w2skd.runs.resume import Start, check_comparable, open_run
from w2skd.runs.setup import Setup, set_up
from w2skd.tasks.base import Evaluation, Remark, Snapshot
from w2skd.tasks.catalog import recipe_types
from w2skd.training.checkpoint import load_last_checkpoint, rewind_to, save_checkpoint
from w2skd.training.clock import Clock
from w2skd.training.engine import Distillation, Engine, SaveDue, evaluate
from w2skd.training.process import Process
from w2skd.weights.beside import describe_beside, restore_beside
from w2skd.weights.load import save_model


def train_arm(recipe: Recipe, arm: Arm, options: RunOptions, ranks: Ranks) -> Path:
    """Train one arm to its end, resuming an interrupted run. Return the run directory.

    Args:
        recipe: the experiment's recipe, with the seed of this run.
        arm: one of the recipe's arms, or `TEACHER`.
        options: the command's options.
        ranks: this process among its peers.

    Raises:
        Stopped, Interrupted: a signal stopped the run after it wrote a checkpoint.
        UserError: any other failure that the user can fix.
    """
    recipe = recipe.for_arm(arm, options.length)
    run = RunDir(run_name(recipe, arm, options).within(options.out))
    device = open_device(options.device, ranks)
    if recipe.helps(arm):
        find_teacher(recipe, options.out, options.teacher_seed)
    with process_group(ranks, device), stop_on_signals() as stop, closing(run):
        stop.again = options.command_to_resume
        start = ranks.on_main(lambda: open_run(run, recipe, arm, options))
        if start.finished:
            if ranks.is_main and not options.quiet:
                Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(f"{run.path}: {start.note}")
            return run.path
        train = recipe.train_of(arm)
        with deterministic_kernels(train.deterministic), float32_math(tf32=train.precision == "tf32"):
            # A run that cannot start leaves its directory and status unchanged.
            setup = ranks.on_all(lambda: set_up(recipe, arm, options, ranks, fresh=start.checkpoint is None))
            facts = setup.with_identity(ranks.on_all(lambda: setup.describe(ranks)), ranks)
            ranks.on_main(lambda: check_comparable(run, arm, start, facts, options))
            training = _Training(run, setup, facts, start, options, ranks, stop)
            with _failure_recorded(run, recipe, arm, ranks), training.view:
                training.begin()
                training.measure_teacher()
                training.fill_statistics()
                training.plan_distillation()
                training.train()
                training.finish()
    return run.path


def run_name(recipe: Recipe, arm: Arm, options: RunOptions) -> RunName:
    """Return the name of the run that a command trains."""
    seed = options.teacher_seed if arm == TEACHER else recipe.seed
    return RunName(arm, seed, 1.0 if arm == TEACHER else options.length)


@dataclass
class _Training:
    """The state that the stages of one training run share.

    Attributes:
        run: the locked run directory.
        setup: data and models.
        facts: what `Setup.describe` returned.
        start: how the run starts.
        options: of the command.
        ranks: this process among its peers.
        stop: the signals received so far.
        clock: time by segment, restored from the checkpoint.
        view: the progress display.
        teacher: between `measure_teacher` and `train`, which hands it to the engine.
        teacher_facts: its metrics and identity; None in arms without a teacher.
        schedule: None in arms without a teacher.
        engine: from `train` on.
    """

    run: RunDir
    setup: Setup
    facts: dict[str, Any]
    start: Start
    options: RunOptions
    ranks: Ranks
    stop: StopRequest
    clock: Clock = field(init=False)
    view: ProgressView = field(init=False)
    teacher: FrozenTeacher | None = None
    teacher_facts: dict[str, Any] | None = None
    schedule: DistillSchedule | None = None
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        setup, checkpoint = self.setup, self.start.checkpoint
        self.clock = Clock(checkpoint["clock"] if checkpoint else None)
        self.view = ProgressView(
            title=f"{setup.recipe.name} {setup.arm} seed {setup.recipe.seed}",
            total_steps=setup.total_steps,
            steps_per_epoch=setup.task.steps_per_epoch,
            metric=setup.task.metric,
            quiet=self.options.quiet,
            unit="epoch" if setup.train.steps is None else "step",
            console=Console(stderr=True, highlight=False, quiet=not self.ranks.is_main),
        )

    def begin(self) -> None:
        """Record what is about to run. On a resume, drop the rows after the checkpoint."""
        if self.start.note:
            self.view.note(self.start.note)
        for what in ("data", "start"):
            for line in self.facts.get(f"{what}_account", ()):
                self.view.note(f"{what}: {line}")
        self.ranks.on_main(self._write_start)

    def measure_teacher(self) -> None:
        """Freeze the teacher and score it as the student will be scored; on a resume, check its identity instead."""
        # The engine must hold the only reference, or the switch would not free the memory.
        loaded, self.setup.teacher = self.setup.teacher, None
        if loaded is None:
            checkpoint = self.start.checkpoint  # a resumed run that was grown and is not distilled needs no teacher
            self.teacher_facts = checkpoint["teacher"] if checkpoint else None
            return
        self.teacher, evaluation = loaded.frozen(self.setup, self.clock), None
        if self.start.checkpoint is not None:
            self.teacher_facts = self.start.checkpoint["teacher"]
            loaded.check_started(self.start.checkpoint)
        else:
            precision = self.setup.train.precision
            with self.clock.segment("evaluate"):
                evaluation = evaluate(self.setup.task, self.teacher.model, self.setup.device, precision)
            doubt = self.setup.task.doubt(evaluation.metrics)
            self.teacher_facts = {
                "metrics": evaluation.metrics,
                **({} if doubt is None else {"doubt": doubt}),
                "checkpoint": str(loaded.weights.path),
                "fingerprint": state_fingerprint(loaded.weights.state),
                "parameters": count_parameters(self.teacher.model),
                "data_fingerprint": loaded.weights.details.get("data_fingerprint"),
            }
            self.ranks.on_main(partial(self.run.append, EventRow(0, "teacher", self.teacher_facts)))
        self.view.show(EventRow(0, "teacher", self.teacher_facts))
        if self.ranks.is_main:
            self._note_teacher(loaded.notes, evaluation)

    def fill_statistics(self) -> None:
        """Set the running statistics of the norms that a grown student has and its teacher lacks."""
        growth = self.setup.growth
        if growth is None or not growth.new_norms:
            return
        with self.clock.segment("train"):
            fill_new_statistics(self.setup)
            self.ranks.average_buffers_([self.setup.model])

    def plan_distillation(self) -> None:
        """Turn the recipe's distill section into a schedule in steps."""
        if self.teacher_facts is None or not self.setup.recipe.helps(self.setup.arm, "distill"):
            self.teacher = None
            return
        setup, section = self.setup, self.setup.recipe.distill
        switch = Switch(
            teacher_value=self.teacher_facts["metrics"][setup.task.metric.name],
            higher_is_better=setup.task.metric.higher_is_better,
            margin=section.switch.margin,
            patience=section.switch.patience,
        )
        lengths = section.lengths(setup.task.steps_per_epoch, setup.total_steps)
        self.schedule = DistillSchedule(weight=section.weight, **lengths, switch=switch)
        if self.schedule.end_step > setup.total_steps:
            self.view.note(
                f"warm-up, hold and decay take {self.schedule.end_step:,} steps, but the run has "
                f"{setup.total_steps:,}: distillation lasts to the end unless the student surpasses its teacher"
            )

    def train(self) -> None:
        """Drain the engine: record and show its rows, and save when it asks."""
        distillation, teacher_compiled = None, self.teacher is not None and self.teacher.is_compiled
        if self.teacher is not None and self.schedule is not None:
            distillation, self.teacher = Distillation(self.teacher, self.schedule), None
        compiled = [
            name for name, wanted in (("student", self.setup.train.compile), ("teacher", teacher_compiled)) if wanted
        ]
        if compiled and self.ranks.is_main:
            what = " and the ".join(compiled)
            self.view.note(f"compiling the {what} at the first step of each image size; this can take minutes")
        if self.start.checkpoint is not None:
            restore_beside(self.setup.model, self.start.checkpoint["details"], "the checkpoint")
        self.engine = engine = Engine(
            self.setup.task,
            self.setup.model,
            train=self.setup.train,
            seed=self.setup.recipe.seed,
            process=Process(self.setup.device, self.ranks, self.clock, self.stop),
            distillation=distillation,
        )
        del distillation
        branches = branch_steps(self.setup.recipe, self.setup.arm, self.setup.task.steps_per_epoch)
        engine.save_at = branches if self.options.length == 1.0 else frozenset()
        if self.start.checkpoint is not None:
            engine.load_state_dict(self.start.checkpoint["engine"])
        elif self.setup.growth is not None:
            engine.average_from_start()
        shown = set[str]()
        try:
            for item in engine.train():
                match item:
                    case SaveDue(best=best, stopping=stopping):
                        self.ranks.on_main(partial(self._save, best))
                        if stopping:
                            self.stop.agree(self.ranks.gather(self.stop.signal))
                            raise self.stop.error(f"at step {engine.step} of {engine.total_steps}")
                    case Snapshot(step=step, draw=draw):
                        if self.ranks.is_main:
                            self._draw(draw, self.run.pictures / f"step_{step:08d}.png")
                    case Remark(text=text):
                        if text not in shown:  # most remarks repeat at every validation
                            self.view.note(text)
                            shown.add(text)
                    case row:
                        self.ranks.on_main(partial(self.run.append, row))
                        phase = None if self.schedule is None else str(self.schedule.phase_at(engine.step))
                        self.view.show(row, phase=phase)
        except TrainingError as error:
            raise TrainingError(f"{error}; last good checkpoint: {self._newest_checkpoint()}") from None

    def finish(self) -> None:
        """Write the model and the last row."""
        self.ranks.on_main(self._write_end)

    def _write_start(self) -> None:
        with self.run.guard():
            self._start_records()

    def _start_records(self) -> None:
        run, setup, start = self.run, self.setup, self.start
        if start.discard:
            run.clear()
        if start.rewind:
            assert start.checkpoint is not None
            rewind_to(run.checkpoints, start.checkpoint)
        if start.trunk is not None and start.checkpoint is not None:
            copy_records(start.trunk, run, start.checkpoint)
        lost = run.truncate_metrics(start.checkpoint["metrics_offset"] if start.checkpoint else 0)
        environment = {
            **describe_environment(setup.device, self.ranks),
            **self.facts,
            "init_from": setup.init_from,
            "deterministic": setup.train.deterministic,
        }
        before = run.environment() if start.checkpoint else {}
        run.start(setup.recipe, before or environment)
        self._set_status("running", step=start.step)
        if start.trunk is not None:
            row = EventRow(start.step, "branched", {"trunk": str(start.trunk.path.relative_to(self.options.out))})
            run.append(row)
            self.view.show(row)
        elif start.checkpoint is not None or lost:
            lost_steps = max([row.step for row in lost], default=start.step) - start.step
            changed = {
                key: environment[key] for key in before if key in environment and before[key] != environment[key]
            }
            row = EventRow(start.step, "resumed", {"lost_steps": lost_steps, "changed": changed})
            run.append(row)
            self.view.show(row)
        threads = start.checkpoint["threads"] if start.checkpoint else torch.get_num_threads()
        if setup.train.deterministic and threads != torch.get_num_threads():
            self.view.note(
                f"the run used {threads} threads so far and uses {torch.get_num_threads()} now: "
                "it will not repeat bit for bit"
            )

    def _note_teacher(self, notes: tuple[str, ...], evaluation: Evaluation | None) -> None:
        assert self.teacher_facts is not None
        if doubt := self.teacher_facts.get("doubt"):
            self.view.note(
                f"warning: the teacher's {doubt}. Usual reasons: another order of classes, another normalisation or "
                "image size, or the wrong weights. Its level is not used as a target, and it is unlikely to help"
            )
        lines = [f"teacher: {line}" for line in (*notes, *(evaluation.notes if evaluation else ()))]
        types, thresholds = recipe_types(), self.setup.recipe.report.thresholds
        lines += teacher_gaps(read_run(self.run.path, types), self.options.out, thresholds, types)
        for line in lines:
            self.view.note(line)
        if evaluation and evaluation.snapshot:
            self._draw(evaluation.snapshot, self.run.pictures / "teacher.png")

    def _save(self, best: bool) -> None:
        with self.clock.segment("checkpoint"):
            state = {
                "engine": self.engine.state_dict(),
                "recipe": self.setup.recipe.model_dump(mode="json"),
                "role": str(self.setup.role),
                "details": {**self.setup.task.describe_model(), **describe_beside(self.setup.model)},
                "teacher": self.teacher_facts,
                "data": self.facts["data_identity"],
                "metrics_offset": self.run.metrics_offset(),
                "threads": torch.get_num_threads(),
                "clock": self.clock.read(),
            }
            with self.run.guard():
                save_checkpoint(self.run.checkpoints, state, best=best)
                if self.engine.step in self.engine.save_at:
                    keep_for_branch(self.run.checkpoints, self.engine.step)
        self._set_status("running", step=self.engine.step)

    def _draw(self, draw: Callable[[Path], None], path: Path) -> None:
        """Write a picture. A failure is only noted: a picture is not worth a run, and a full disk ends it anyway."""
        with self.clock.segment("evaluate"):
            try:
                with self.run.guard():
                    with writing(path.parent):
                        path.parent.mkdir(exist_ok=True)
                    draw(path)
            except OutputError as error:
                self.view.note(f"no picture: {error}")

    def _newest_checkpoint(self) -> str:
        checkpoint, _ = load_last_checkpoint(self.run.checkpoints)
        step = checkpoint["engine"]["step"] if checkpoint else None
        return "none" if step is None else f"{self.run.checkpoints / 'last.pt'} of step {step}"

    def _write_end(self) -> None:
        engine, task = self.engine, self.setup.task
        state = engine.evaluated_model.state_dict()
        details = {
            "step": engine.step,
            "metric": task.metric.name,
            "best": engine.best,
            "best_step": engine.best_step,
            "fingerprint": state_fingerprint(state),
        }
        about = {**details, **task.describe_model(), **describe_beside(self.setup.model), **task.describe_data()}
        row = EventRow(engine.step, "finished", details)
        with self.run.guard():
            save_model(self.run.model_path, state, self.setup.recipe, str(self.setup.role), about)
            self.run.append(row)
            self._set_status("finished", step=engine.step, best=engine.best)
        self.view.show(row)

    def _set_status(self, state: State, **details: Any) -> None:
        step = details.pop("step")
        self.run.set_status(
            self.setup.arm,
            self.setup.recipe.seed,
            state,
            length=self.options.length,
            step=step,
            total_steps=self.setup.total_steps,
            **details,
        )


@contextmanager
def _failure_recorded(run: RunDir, recipe: Recipe, arm: Arm, ranks: Ranks) -> Iterator[None]:
    """Record in ``status.json`` how the run failed, because torchrun turns every exit code into 1."""
    try:
        yield
    except BaseException as error:
        state: State = "stopped" if isinstance(error, Stopped | Interrupted | KeyboardInterrupt) else "failed"
        if ranks.is_main and (run.path / "status.json").exists():
            try:
                before = run.status()
                known: dict[str, Any] = {key: before.get(key) for key in ("step", "total_steps")}
                reason = str(error) or type(error).__name__
                run.set_status(arm, recipe.seed, state, length=before.get("length", 1.0), **known, reason=reason)
            except UserError:
                pass  # the disk on which the run failed; the error itself is raised below
        raise
