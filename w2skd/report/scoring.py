"""Scoring settings of a run. Runs that differ in them are never compared.

FID, for example, depends on the feature network, the number of samples and the real images. Tasks
with such metrics record these settings as ``scoring`` in ``environment.json``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from w2skd.recipe.arms import TEACHER
from w2skd.records.rundir import RunRecord


class Difference(NamedTuple):
    """The first setting in which two scorings differ, as text."""

    key: str
    ours: str
    theirs: str

    def between(self, us: str, them: str) -> str:
        """Return the difference as ``samples is 10,000 in baseline/seed0, 2,000 in w2s/seed0``."""
        return f"{self.key} is {self.ours} in {us}, {self.theirs} in {them}"


def scoring_of(run: RunRecord) -> Mapping[str, Any]:
    """Return a run's recorded scoring settings; empty for tasks without any."""
    scoring = run.environment.get("scoring")
    return scoring if isinstance(scoring, dict) else {}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference | None:
    """Return the first setting in which two scorings differ; None if they are equal."""
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            return Difference(_words(key), *(_value(each[key]) if key in each else _UNKNOWN for each in (ours, theirs)))
    return None


def in_one_line(scoring: Mapping[str, Any]) -> str:
    """Format settings as ``extractor inception-v3-compat; samples 10,000; seed 0``."""
    return "; ".join(f"{_words(key)} {_value(value)}" for key, value in scoring.items())


def scored_alike(run: RunRecord, others: Iterable[RunRecord]) -> tuple[list[RunRecord], list[tuple[RunRecord, str]]]:
    """Split runs into those scored like `run`, and the others with the difference.

    The teacher's own run always counts as scored alike, because its scores enter no comparison.
    """
    alike, different = [], []
    for other in others:
        found = difference(scoring_of(run), scoring_of(other))
        if found is None or TEACHER in (run.arm, other.arm):
            alike.append(other)
        else:
            different.append((other, found.between("this run", "that one")))
    return alike, different


_UNKNOWN = "not recorded"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
