"""How a run's scores came about, where that is a choice. Those that differ in it are never compared.

FID, for one, depends on the network whose features it compares, on how many samples, and on which real images. Tasks
whose metrics have such choices put them on record as ``scoring`` in ``environment.json``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from w2skd.recipe.arms import TEACHER
from w2skd.records.rundir import RunRecord


class Difference(NamedTuple):
    """The first thing in which two scorings differ, as text."""

    key: str
    ours: str
    theirs: str

    def between(self, us: str, them: str) -> str:
        """The difference in words: ``samples is 10,000 in baseline/seed0, 2,000 in w2s/seed0``."""
        return f"{self.key} is {self.ours} in {us}, {self.theirs} in {them}"


def scoring_of(run: RunRecord) -> Mapping[str, Any]:
    """What a run has on record; empty where its task leaves no choice."""
    scoring = run.environment.get("scoring")
    return scoring if isinstance(scoring, dict) else {}


def difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Difference | None:
    """The first key that two scorings do not share; None when they are the same."""
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            return Difference(_words(key), *(_value(each[key]) if key in each else _UNKNOWN for each in (ours, theirs)))
    return None


def in_one_line(scoring: Mapping[str, Any]) -> str:
    """For people: ``extractor inception-v3-compat; samples 10,000; seed 0``."""
    return "; ".join(f"{_words(key)} {_value(value)}" for key, value in scoring.items())


def scored_alike(run: RunRecord, others: Iterable[RunRecord]) -> tuple[list[RunRecord], list[tuple[RunRecord, str]]]:
    """Those whose scores can be compared with a run's, and the others with what they differ in.

    A teacher's own run is not asked: its scores are compared with nobody's.
    """
    alike, different = [], []
    for other in others:
        found = difference(scoring_of(run), scoring_of(other))
        if found is None or TEACHER in (run.arm, other.arm):
            alike.append(other)
        else:
            different.append((other, found.between("this run", "that one")))
    return alike, different


_UNKNOWN = "not on record"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
