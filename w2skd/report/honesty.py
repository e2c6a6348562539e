"""Caveats of a speed-up, one line each."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from w2skd.recipe.flat import flatten, select
from w2skd.records.rundir import RunRecord
from w2skd.report import units
from w2skd.report.crossing import events
from w2skd.report.experiment import Experiment, label, teacher_is_ours, teacher_levels
from w2skd.report.scoring import difference, scoring_of

_NOT_COMPARED = frozenset({"name", "seed", "teacher", "distill", "arms", "lengths", "report"})
"""Sections that may differ between the arms. Scoring sections are not compared either, because runs that are scored
differently are refused when the experiment is read."""
_LOCATIONS = ("data.root", "data.download")
"""Keys that may differ between all runs, because the records identify the data by a hash."""

_DATA_WORDS = {
    "training_data": "the training data",
    "evaluation_data": "the evaluation data",
    "training_fingerprint": "the training data",
    "evaluation_fingerprint": "the evaluation data",
    "init_from": "the initial weights",
}
"""Keys of `_comparable` that are no recipe's -> words."""

_OWN_SCORES = "the teacher's own run was scored differently, so its best and final values are not comparable"
_HARDWARE = ("device", "device_name", "threads", "ranks")
_SOFTWARE = ("w2skd", "commit", "torch")
_ENOUGH_SEEDS = 3


def warnings(experiment: Experiment) -> Iterator[str]:
    """Yield everything about the runs that weakens a comparison; `threshold_warnings` covers the thresholds."""
    for check in _CHECKS:
        yield from check(experiment)


def breaking_differences(runs: Sequence[RunRecord], allowed: Collection[str] = ()) -> Iterator[str]:
    """Yield one line for every setting that differs between runs and breaks their comparison.

    These are the training settings, the data and the initial weights. A setting in an arm's ``set`` section is compared
    only between the runs of that arm. All other arms are compared with each other.

    Args:
        runs: of all arms.
        allowed: keys that may differ.
    """
    for key, line in _differences_by_key(runs, _comparable):
        if key not in allowed:
            what = _DATA_WORDS.get(key, key)
            yield f"no speed-up, since runs differ in {what}: {line}; --allow-different {key} compares them regardless"


def _comparable(run: RunRecord) -> dict[str, Any]:
    """Return everything that runs must share to be compared."""
    values = select(_trained(run), [*_trained(run)], run.recipe.speed_only)
    return values | _data_hashes(run) | {"init_from": run.environment.get("init_from")}


def _own(run: RunRecord, key: str) -> str:
    """Return the run's arm if its ``set`` section contains this key, else an empty string."""
    section = run.recipe.arms.get(run.arm)
    return run.arm if section is not None and select({key: None}, [*section.overrides]) else ""


def _data_hashes(run: RunRecord) -> dict[str, str]:
    """Return what identifies the training and the evaluation set; older records have a fingerprint only."""
    identity = run.environment.get("data_identity")
    if isinstance(identity, dict):
        return {f"{part}_data": " ".join(str(value) for value in facts.values()) for part, facts in identity.items()}
    parts = str(run.environment.get("data_fingerprint") or "").partition("/")[::2]
    named = zip(("training_fingerprint", "evaluation_fingerprint"), parts, strict=True)
    return {key: value for key, value in named if value}


def _recipes(experiment: Experiment) -> Iterator[str]:
    """Yield differences in training, distillation and report settings."""
    for line in _differences(experiment.students, _trained):
        yield f"training settings differ between runs: {line}"
    for arm in experiment.others:
        helped = [run for run in experiment.arm(arm).values() if run.helped()]
        sections = ("distill", "teacher") if helped and helped[0].helped("distill") else ("teacher",)
        for line in _differences(helped, lambda run, names=sections: _sections(run, names)):  # type: ignore[misc]
            yield f"distillation settings differ between {arm} runs: {line}"
    first = experiment.students[0]
    for line in _differences(experiment.students, lambda run: _sections(run, ("report",))):
        yield f"report settings differ, those of {label(first)} are used: {line}"


def _data(experiment: Experiment) -> Iterator[str]:
    for line in _differences((*experiment.teachers, experiment.students[0]), _training_data):
        yield f"training data differ between runs: {line}"
    for line in _differences(experiment.students, lambda run: {"init_from": run.environment.get("init_from")}):
        yield f"initial weights differ between runs: {line}"


def _machines(experiment: Experiment) -> Iterator[str]:
    for line in _differences(experiment.runs, lambda run: _select(run, _HARDWARE)):
        yield f"seconds are not comparable (epochs, steps and FLOPs still are): {line}"
    for line in _differences(experiment.students, lambda run: _select(run, _SOFTWARE)):
        yield f"software differs between runs: {line}"


def _unfinished(experiment: Experiment) -> Iterator[str]:
    for run in experiment.runs:
        state = run.status.get("state", "unknown")
        if state != "finished":
            total = run.status.get("total_steps")
            at = f" at step {run.status['step']:,}" if isinstance(run.status.get("step"), int) else ""
            of = f" of {total:,}" if at and isinstance(total, int) else ""
            reason = f" ({run.status['reason']})" if run.status.get("reason") else ""
            yield f"{label(run)} is not finished: {state}{at}{of}{reason}"


def _seeds(experiment: Experiment) -> Iterator[str]:
    theirs = set(experiment.arm(experiment.reference))
    counts: dict[int, list[str]] = {}
    reference = experiment.reference
    for arm in experiment.others:
        ours = set(experiment.arm(arm))
        for name, other, lonely in ((reference, arm, theirs - ours), (arm, reference, ours - theirs)):
            if lonely:
                seeds = "seed" if len(lonely) == 1 else "seeds"
                where, what = f"in the {name} arm only", "every speed-up"
                if len(experiment.others) > 1:
                    where, what = f"in {name}, but not in {other}", f"the speed-ups of {arm}"
                yield f"{seeds} {_list(sorted(lonely))} {where}: excluded from {what}"
        counts.setdefault(len(theirs & ours), []).append(arm)
    for pairs, arms in counts.items():
        prefix = "" if len(counts) == 1 else f"{', '.join(arms)}: "
        if pairs == 1:
            yield f"{prefix}a single seed: the spread between seeds is unknown"
        elif 1 < pairs < _ENOUGH_SEEDS:
            yield f"{prefix}{pairs} seeds only: at least {_ENOUGH_SEEDS} are needed to judge the spread"


def _teachers(experiment: Experiment) -> Iterator[str]:
    levels = teacher_levels(experiment)
    if len(set(levels.values())) > max(1, len(experiment.teachers)):
        shown = ", ".join(f"{units.level(level, experiment.metric)} ({name})" for name, level in levels.items())
        yield f"teacher levels differ between runs: {shown}; the median is used"
    for run in experiment.helped.values():
        for event in events(run.rows, "teacher"):
            if "data_fingerprint" not in event.details:  # records of older versions
                continue
            learned_from = event.details["data_fingerprint"]
            if learned_from is None:
                outside = "part of its accuracy may come from other data"
                yield f"the training data of {label(run)}'s teacher are not recorded: {outside}"
            elif learned_from.partition("/")[0] != _training_data(run).get("training_data"):
                yield f"the teacher of {label(run)} was trained on other data, which explain part of its accuracy"
    if experiment.helped and not teacher_is_ours(experiment):
        why = "it was not trained in this experiment" if experiment.teachers else "its run is not in this experiment"
        yield f"the teacher's training cost is not in this report: {why}"


def _own_scores_of_teacher(experiment: Experiment) -> Iterator[str]:
    for teacher in experiment.teachers:
        found = difference(scoring_of(teacher), experiment.scoring)
        if found is not None:
            what = found.between(label(teacher), label(experiment.students[0]))
            yield f"{_OWN_SCORES}: {what}"


def _incidents(experiment: Experiment) -> Iterator[str]:
    for run in experiment.runs:
        resumed = events(run.rows, "resumed")
        if resumed:
            lost = sum(event.details.get("lost_steps") or 0 for event in resumed)
            times = "once" if len(resumed) == 1 else f"{len(resumed)} times"
            yield f"{label(run)} was resumed {times} and repeated {lost:,} steps, which seconds exclude"
        keys = {key for event in resumed for key in event.details.get("changed") or {}}
        if keys & {"data_identity", "data_fingerprint"}:
            yield f"{label(run)} was resumed on changed data: it learned from none of them alone"
        changed = sorted(keys & {*_HARDWARE, *_SOFTWARE})
        if changed:
            yield f"{label(run)} was resumed with different {', '.join(changed)}: its seconds mix both"
        steps = sum(len(event.details.get("steps") or ()) for event in events(run.rows, "non_finite"))
        if events(run.rows, "non_finite"):
            yield f"{label(run)} had a non-finite loss or gradient at {steps:,} steps; their updates were skipped"


_CHECKS: tuple[Callable[[Experiment], Iterator[str]], ...] = (
    _unfinished,
    _seeds,
    _recipes,
    _data,
    _machines,
    _teachers,
    _own_scores_of_teacher,
    _incidents,
)


def _training_data(run: RunRecord) -> dict[str, Any]:
    fingerprint = run.environment.get("data_fingerprint")
    return {} if fingerprint is None else {"training_data": str(fingerprint).partition("/")[0]}


def _differences(runs: Sequence[RunRecord], values: Callable[[RunRecord], dict[str, Any]]) -> Iterator[str]:
    """Yield one line for every key whose value differs between runs; runs without the key are skipped."""
    yield from (line for _, line in _differences_by_key(runs, values))


def _differences_by_key(
    runs: Sequence[RunRecord], values: Callable[[RunRecord], dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield key and line for every key whose value differs between runs; runs without the key are skipped."""
    described = [(run, values(run)) for run in runs]
    for key in dict.fromkeys(key for _, found in described for key in found):
        holders: dict[str, dict[str, list[str]]] = {}
        for run, found in described:
            if key in found:
                by_value = holders.setdefault(_own(run, key), {})
                by_value.setdefault(json.dumps(found[key], sort_keys=True), []).append(label(run))
        for by_value in holders.values():
            if len(by_value) > 1:
                places = ", ".join(f"{_plain(value)} in {_names(names)}" for value, names in by_value.items())
                yield key, f"{key} is {places}"


def _trained(run: RunRecord) -> dict[str, Any]:
    sections = type(run.recipe).model_fields.keys() - _NOT_COMPARED - {*run.recipe.scoring}
    return _sections(run, [name for name in type(run.recipe).model_fields if name in sections])


def _sections(run: RunRecord, sections: Sequence[str]) -> dict[str, Any]:
    return select(flatten(run.recipe.model_dump(mode="json")), sections, _LOCATIONS)


def _select(run: RunRecord, keys: Sequence[str]) -> dict[str, Any]:
    return {key: run.environment[key] for key in keys if run.environment.get(key) is not None}


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _plain(value: str) -> str:
    text = value.strip('"')
    return text if len(text) <= 40 else f"{text[:37]}..."


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)
