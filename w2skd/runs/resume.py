"""How a run starts: fresh, from a checkpoint, not at all, or with a refusal that gives the reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from w2skd.data.identity import differing_data
from w2skd.errors import CheckpointError, RunDirError, UsageError
from w2skd.method.teacher import state_fingerprint
from w2skd.recipe.arms import TEACHER, Arm
from w2skd.recipe.flat import flatten, select
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.records.names import RunName
from w2skd.records.rows import EventRow
from w2skd.records.rundir import RunDir, RunRecord, find_teacher, read_recipe, read_run, readable_runs
from w2skd.report.experiment import label
from w2skd.report.scoring import difference, scoring_of
from w2skd.runs.branch import load_trunk
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import describe_init
from w2skd.tasks.base import Role
from w2skd.tasks.catalog import recipe_types
from w2skd.training.checkpoint import load_checkpoint, load_last_checkpoint
from w2skd.weights.load import load_weights


@dataclass(frozen=True)
class Start:
    """How a run starts.

    Attributes:
        checkpoint: the state to resume from; None starts fresh.
        note: a line for the user.
        discard: remove what the directory holds first.
        rewind: the checkpoint was named by the user and may not be the newest.
        finished: nothing is left to do.
        trunk: the longer run from which `checkpoint` comes, if the run branches off a trunk.
    """

    checkpoint: dict[str, Any] | None = None
    note: str | None = None
    discard: bool = False
    rewind: bool = False
    finished: bool = False
    trunk: RunDir | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that are already done."""
        return self.checkpoint["engine"]["step"] if self.checkpoint else 0


def open_run(run: RunDir, recipe: Recipe, arm: Arm, options: RunOptions) -> Start:
    """Lock the run directory and decide how the run starts.

    Raises:
        RunDirError: the directory is in use, or holds another run.
        CheckpointError: no checkpoint can be read, or the named one belongs to another run.
        UsageError: the options contradict each other.
    """
    named = options.named_checkpoint
    if named is not None and options.overwrite:
        raise UsageError(f"--overwrite discards the run that --resume {named} resumes: use one of the two")
    run.lock(options.watch)
    if options.overwrite:
        return replace(_first_start(recipe, arm, options), discard=True)
    if not run.holds_a_run():
        if named is not None:
            raise RunDirError(f"{run.path}: no run to resume; --init-from {named} loads the weights only")
        return _first_start(recipe, arm, options)
    if options.resume == "never":
        raise RunDirError(f"{run.path}: already holds a run; resume it (--resume auto) or discard it (--overwrite)")
    _check_same_run(run, recipe, arm, options)
    if named is not None:
        return Start(_named_checkpoint(run, named, recipe, arm), rewind=True)
    if run.model_path.exists() and run.status().get("state") == "finished":
        if recipe.helps(arm):
            _check_teacher_of(run, recipe, find_teacher(recipe, options.out, options.teacher_seed))
        return Start(finished=True, note="already finished")
    checkpoint, problem = load_last_checkpoint(run.checkpoints)
    if checkpoint is not None and not run.has_rows_up_to(checkpoint["metrics_offset"]):
        raise RunDirError(
            f"{run.metrics_path}: rows are missing that the last checkpoint recorded; discard the run (--overwrite) "
            "or resume from an earlier checkpoint of it (--resume PATH)"
        )
    if checkpoint is None:
        return _first_start(recipe, arm, options)
    return Start(checkpoint, f"{problem}; resuming from the checkpoint before" if problem else None)


def _first_start(recipe: Recipe, arm: Arm, options: RunOptions) -> Start:
    """Return the start of a run without a checkpoint of its own: from scratch, or from its trunk's checkpoint."""
    if options.length == 1.0 or not recipe.has_trunk:
        return Start()
    trunk = RunDir(RunName(arm, recipe.seed).within(options.out))
    if trunk.status().get("state") != "finished":
        raise RunDirError(f"{trunk.path}: not finished, and shorter runs branch off it; train it first")
    longest = read_recipe(trunk.path, recipe_types())
    scaled = longest.model_copy(update={"train": longest.train.scaled(options.length)})
    if differing := differing_keys(scaled, recipe, arm):
        raise RunDirError(f"{trunk.path}: a run of another recipe ({'; '.join(differing)}); choose another --out")
    checkpoint = load_trunk(trunk, recipe, trunk.environment()["steps_per_epoch"])
    return Start(checkpoint, trunk=None if checkpoint is None else trunk)


def check_comparable(run: RunDir, arm: Arm, start: Start, facts: Mapping[str, Any], options: RunOptions) -> None:
    """Check that a run has the data and the scoring of its own start, and of the other runs of its experiment.

    The teacher's own run is exempt, because its scores are compared with no other run's.

    Raises:
        RunDirError: they differ.
    """
    facts = json.loads(json.dumps(facts))
    before = run.environment() if start.checkpoint is not None else {}
    siblings = [] if arm == TEACHER else readable_runs(options.out, recipe_types())
    siblings = [sibling for sibling in siblings if sibling.path != run.path and sibling.arm != TEACHER]
    if not options.allow_changed_data:
        checkpoint = start.checkpoint or {}
        known = before | ({"data_identity": checkpoint["data"]} if "data" in checkpoint else {})
        _check_same_data(run.path, known, facts, "since the run's start")
        for sibling in siblings:
            _check_same_data(run.path, sibling.environment, facts, f"since {label(sibling)} was trained")
    _check_scored_alike(run, before, facts.get("scoring", {}), siblings)


def _check_same_data(run: Path, before: Mapping[str, Any], now: Mapping[str, Any], when: str) -> None:
    if "data_identity" in before:
        difference = differing_data(before["data_identity"], now["data_identity"])
    else:  # records of older versions, whose fingerprint depends on the feed
        known = before.get("data_fingerprint") if before.get("feed") == now.get("feed") else None
        difference = None if known in (None, now["data_fingerprint"]) else "their fingerprint"
    if difference is not None:
        raise RunDirError(
            f"{run}: the data changed {when} ({difference}); restore the data, choose another --out, or continue "
            "regardless (--allow-changed-data)"
        )


def _check_scored_alike(
    run: RunDir, before: Mapping[str, Any], scoring: Mapping[str, Any], siblings: Sequence[RunRecord]
) -> None:
    if "scoring" in before and scoring:
        found = difference(before["scoring"], scoring)
        if found is not None:
            raise RunDirError(
                f"{run.path}: holds a run that was scored differently: {found.between('its records', 'this command')}; "
                "choose another --out or discard it (--overwrite)"
            )
    for sibling in siblings:
        found = difference(scoring, scoring_of(sibling))
        if found is not None:
            raise RunDirError(
                f"{run.path}: would be scored differently from {sibling.path} and could not be compared with it: "
                f"{found.between('this command', label(sibling))}; choose another --out"
            )


def differing_keys(before: Recipe, after: Recipe, arm: Arm) -> list[str]:
    """List the settings of an arm that differ between two recipes and change what it learns: ``key: old -> new``."""
    old, new = _settings(before, arm), _settings(after, arm)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if _without_place(before, key, old.get(key)) != _without_place(before, key, new.get(key))
    ]


def _settings(recipe: Recipe, arm: Arm) -> dict[str, Any]:
    """Return everything that decides what an arm learns and how it is scored, as dotted keys."""
    values = recipe.model_dump(mode="json") | {"train": recipe.train_of(arm).model_dump(mode="json")}
    own = ["teacher.model"] if arm == TEACHER else ["student"]
    own += ["teacher"] if recipe.helps(arm) else []
    own += ["distill"] if recipe.helps(arm, "distill") else []
    shared = values.keys() - {"name", "teacher", "student", "distill", "arms", "lengths", "report"}
    ignored = (*recipe.speed_only, "teacher.checkpoint", "teacher.weights", "teacher.train")
    return select(flatten(values), (*shared, *own, "report.metric"), ignored)


def _without_place(recipe: Recipe, key: str, value: Any) -> Any:
    """Drop the path from a value such as ``checkpoint:PATH``, since files may be moved between two starts."""
    place = recipe.places.get(key)
    return place.prefix if place and place.prefix and str(value).startswith(place.prefix) else value


def _check_same_run(run: RunDir, recipe: Recipe, arm: Arm, options: RunOptions) -> None:
    try:
        existing = read_recipe(run.path, recipe_types())
    except FileNotFoundError:
        raise RunDirError(
            f"{run.path}: not empty, and holds no run; choose another --out or discard it (--overwrite)"
        ) from None
    differing = differing_keys(existing, recipe, arm)
    if differing:
        raise RunDirError(
            f"{run.path}: holds a run of another recipe ({'; '.join(differing)}); "
            "choose another --out or discard it (--overwrite)"
        )
    if options.init_from is None:
        return
    start = describe_init(load_weights(options.init_from, options.init_weights))
    if run.environment().get("init_from") != start:
        raise RunDirError(f"{run.path}: holds a run that did not start from {options.init_from}; choose another --out")


def _check_teacher_of(run: RunDir, recipe: Recipe, path: Path) -> None:
    rows = read_run(run.path, recipe_types()).rows
    known = next((row.details for row in rows if isinstance(row, EventRow) and row.name == "teacher"), None)
    weights = recipe.task_type().open_weights(path, recipe.teacher.model, recipe.teacher.weights)
    if known is not None and known.get("fingerprint") != state_fingerprint(weights.state):
        raise RunDirError(
            f"{run.path}: holds a finished run with another teacher ({known.get('checkpoint')}), not {path}; "
            "choose another --out or discard it (--overwrite)"
        )


def _named_checkpoint(run: RunDir, path: Path, recipe: Recipe, arm: Arm) -> dict[str, Any]:
    """Load the checkpoint that ``--resume`` names, if it belongs to this run."""
    checkpoint = load_checkpoint(path)
    made_by = validate_recipe(checkpoint["recipe"], str(path), recipe_types())
    same_arm = (checkpoint["role"] == Role.TEACHER) == (arm == TEACHER)
    same_arm = same_arm and (checkpoint["teacher"] is not None) == recipe.helps(arm)
    if not same_arm or differing_keys(made_by, recipe, arm) or not run.has_rows_up_to(checkpoint["metrics_offset"]):
        raise CheckpointError(f"{path}: not a checkpoint of the run in {run.path}")
    return checkpoint
