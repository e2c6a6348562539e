"""How a run begins: afresh, from a checkpoint, not at all, or with a refusal that says why."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2skd.errors import CheckpointError, RunDirError, UsageError
from w2skd.method.teacher import state_fingerprint
from w2skd.recipe.arms import Arm
from w2skd.recipe.flat import WHEREABOUTS, flatten, select
from w2skd.recipe.load import validate_recipe
from w2skd.recipe.schema import Recipe
from w2skd.records.rows import EventRow
from w2skd.records.rundir import RunDir, find_teacher, read_recipe, read_run, readable_runs, run_path
from w2skd.report.experiment import label
from w2skd.report.scoring import difference, scoring_of
from w2skd.runs.options import RunOptions
from w2skd.runs.setup import describe_init
from w2skd.tasks.base import Role
from w2skd.training.checkpoint import load_checkpoint, load_last_checkpoint
from w2skd.weights.pretrained import open_weights

_IGNORED_ON_RESUME = (
    *(*WHEREABOUTS, "data.workers", "data.worker_timeout_s"),
    *("train.log_every", "train.checkpoint_every"),
    *("sampler.batch_size", "fid.batch_size", "fid.cache", "fid.weights"),  # which weights these are, the scoring tells
)
"""Keys that may differ between a run and its resume: they do not change what is learned."""

_KEPT_IN_A_PLACE: Mapping[str, str] = {
    "fid.extractor": "checkpoint:",
    "teacher.model": "diffusers:",
    "student.model": "diffusers:",
}
"""Keys that may name a place, and how such values begin. What lies there may be moved: the scoring holds the weights'
sum of the one, the checkpoint a fingerprint or all weights of the others."""


@dataclass(frozen=True)
class Start:
    """How a run begins: afresh, from a checkpoint, or not at all.

    Attributes:
        checkpoint: to go on from.
        note: what the user should know about it.
        discard: what is there goes first.
        rewind: the checkpoint was named, and may not be the newest.
        finished: there is nothing left to do.
    """

    checkpoint: dict[str, Any] | None = None
    note: str | None = None
    discard: bool = False
    rewind: bool = False
    finished: bool = False


def open_run(run: RunDir, recipe: Recipe, arm: Arm, options: RunOptions) -> Start:
    """Lock the directory and see what is there."""
    named = options.named_checkpoint
    if named is not None and options.overwrite:
        raise UsageError(f"--overwrite would discard the run that --resume {named} goes on with: give one of the two")
    run.lock()
    if options.overwrite:
        return Start(discard=True)
    if not run.holds_a_run():
        if named is not None:
            raise RunDirError(f"{run.path}: nothing to resume here; --init-from {named} takes weights only")
        return Start()
    if options.resume == "never":
        raise RunDirError(f"{run.path} already holds a run: resume it (--resume auto), or discard it (--overwrite)")
    try:
        theirs = read_recipe(run.path)
    except FileNotFoundError:
        raise RunDirError(f"{run.path} is not empty and holds no run: choose another --out, or --overwrite") from None
    differing = differing_keys(theirs, recipe, arm)
    if differing:
        raise RunDirError(
            f"{run.path} holds a run of another recipe ({'; '.join(differing)}): "
            "choose another --out, or discard it (--overwrite)"
        )
    if options.init_from is not None and run.environment().get("init_from") != describe_init(options.init_from):
        raise RunDirError(f"{run.path} holds a run that did not begin from {options.init_from}: choose another --out")
    if named is None and run.model_path.exists() and run.status().get("state") == "finished":
        if arm == "w2s":
            _check_teacher_of(run, recipe, find_teacher(recipe, options.out))
        return Start(finished=True, note="already finished")
    if named is not None:
        return Start(_named_checkpoint(run, named, recipe, arm), rewind=True)
    checkpoint, problem = load_last_checkpoint(run.checkpoints)
    if checkpoint is not None and not run.has_rows_up_to(checkpoint["metrics_offset"]):
        raise RunDirError(
            f"{run.metrics_path}: rows are missing that the last checkpoint knew of: discard the run (--overwrite), "
            "or go on from an earlier checkpoint of it (--resume PATH)"
        )
    return Start(checkpoint, f"{problem}; going on from the one before" if problem else None)


def check_scored_alike(run: RunDir, start: Start, facts: Mapping[str, Any], experiment: Path) -> None:
    """A run is scored as it was when it goes on, and as the others of its experiment: all else would mean nothing.

    A teacher's own run is neither asked nor a measure for others: its scores are compared with nobody's.

    Raises:
        RunDirError: it would be scored in another way.
    """
    before = run.environment() if start.checkpoint is not None else {}
    scoring = json.loads(json.dumps(facts.get("scoring", {})))
    if "scoring" in before and "scoring" in facts:
        found = difference(before["scoring"], scoring)
        if found is not None:
            raise RunDirError(
                f"{run.path} holds a run that was scored in another way: {found.between('its records', 'this call')}; "
                "choose another --out, or discard it (--overwrite)"
            )
    _check_siblings_scored_alike(run, scoring, experiment)


def _check_siblings_scored_alike(run: RunDir, scoring: Mapping[str, Any], experiment: Path) -> None:
    teacher = run_path(experiment, "teacher", 0)
    if run.path == teacher:
        return
    for sibling in readable_runs(experiment):
        found = None if sibling.path in (run.path, teacher) else difference(scoring, scoring_of(sibling))
        if found is not None:
            raise RunDirError(
                f"{run.path} would be scored in another way than {sibling.path}, and could not be compared with it: "
                f"{found.between('this call', label(sibling))}; choose another --out"
            )


def _check_teacher_of(run: RunDir, recipe: Recipe, path: Path) -> None:
    """A finished run answers for the teacher that it had, and for no other."""
    known = next((row for row in read_run(run.path).rows if isinstance(row, EventRow) and row.name == "teacher"), None)
    theirs = open_weights(path, recipe.teacher.model)
    if known is not None and known.details.get("fingerprint") != state_fingerprint(theirs.state):
        raise RunDirError(
            f"{run.path} holds a finished run with another teacher ({known.details.get('checkpoint')}), not {path}: "
            "choose another --out, or discard it (--overwrite)"
        )


def _named_checkpoint(run: RunDir, path: Path, recipe: Recipe, arm: Arm) -> dict[str, Any]:
    """The checkpoint that ``--resume`` names, if it is one of this run."""
    checkpoint = load_checkpoint(path)
    made_by = validate_recipe(checkpoint["recipe"], str(path))
    same_arm = (checkpoint["role"] == Role.TEACHER, checkpoint["teacher"] is not None) == (
        arm == "teacher",
        arm == "w2s",
    )
    if not same_arm or differing_keys(made_by, recipe, arm) or not run.has_rows_up_to(checkpoint["metrics_offset"]):
        raise CheckpointError(f"{path}: not a checkpoint of the run in {run.path}")
    return checkpoint


def differing_keys(theirs: Recipe, ours: Recipe, arm: Arm) -> list[str]:
    """What two recipes of one arm differ in, as far as it changes what that arm learns: ``key: theirs -> ours``."""
    before, after = _what_is_learned(theirs, arm), _what_is_learned(ours, arm)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if _without_place(key, before.get(key)) != _without_place(key, after.get(key))
    ]


def _without_place(key: str, value: Any) -> Any:
    kind = _KEPT_IN_A_PLACE.get(key)
    return kind if kind is not None and str(value).startswith(kind) else value


def _what_is_learned(recipe: Recipe, arm: Arm) -> dict[str, Any]:
    values = recipe.model_dump(mode="json") | {"train": recipe.train_of(arm).model_dump(mode="json")}
    taught = ("teacher.model", "teacher.image_size", "teacher.normalization", "distill")
    sections = {"teacher": ("teacher.model",), "baseline": ("student",), "w2s": ("student", *taught)}
    common = ("task", "seed", "data", "loss", "train", "diffusion", "sampler", "fid", "report.metric")
    return select(flatten(values), (*common, *sections[arm]), _IGNORED_ON_RESUME)
