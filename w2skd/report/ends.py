"""Final scores of complete training schedules, and the pairing of two arms by seed."""

import math
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace

from w2skd.report.mean_curve import isotonic
from w2skd.report.replicates import Replicates


@dataclass(frozen=True)
class Ends:
    """Final scores of the complete schedules of one arm.

    Attributes:
        arm: name of the arm.
        lengths: lengths of the schedules, ascending, in the same unit for all arms (epochs or steps).
        seeds: seeds of the runs. Runs of two arms with the same seed are paired.
        values: final scores [seeds, lengths]; NaN where a run is missing.
        teachers: the teacher of each seed; None if no seeds share a teacher.
        teacher_costs: the cost of training the teacher of each seed, in epochs or steps of the student (FLOPs of the
            teacher's training / FLOPs of one epoch or step of the student); None if there is no teacher or the cost is
            unknown.

    Raises:
        ValueError: the shapes disagree, or the lengths are not ascending.
    """

    arm: str
    lengths: tuple[float, ...]
    seeds: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    teachers: tuple[Hashable, ...] | None = None
    teacher_costs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if any(length <= 0 for length in self.lengths) or list(self.lengths) != sorted(set(self.lengths)):
            raise ValueError(f"lengths of {self.arm} must be positive and ascend: {self.lengths}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds of {self.arm} repeat: {self.seeds}")
        if [len(row) for row in self.values] != [len(self.lengths)] * len(self.seeds):
            shape = f"[{len(self.seeds)}, {len(self.lengths)}]"
            raise ValueError(f"values of {self.arm} must be {shape}, got rows of {[len(row) for row in self.values]}")
        for name, column in (("teachers", self.teachers), ("teacher_costs", self.teacher_costs)):
            if column is not None and len(column) != len(self.seeds):
                raise ValueError(f"{name} of {self.arm} must have {len(self.seeds)} entries, got {len(column)}")


@dataclass(frozen=True)
class Pairing:
    """Scores of the seeds that have all runs which a comparison needs. Higher is better.

    Attributes:
        lengths: lengths of the arm.
        ends: final scores of the arm [lengths, seeds].
        reference_lengths: lengths of the reference that are used.
        curves: final scores of the reference [seeds, reference lengths].
        seeds: seeds that are compared.
        costs: cost of training the teacher of each seed; None if unknown.
        replicates: the seeds, grouped by teacher.
    """

    lengths: tuple[float, ...]
    ends: tuple[tuple[float, ...], ...]
    reference_lengths: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]
    costs: tuple[float, ...] | None
    replicates: Replicates

    @property
    def xs(self) -> list[float]:
        """The natural logarithms of the reference's lengths."""
        return [math.log(length) for length in self.reference_lengths]

    @property
    def raw_curve(self) -> list[float]:
        """The reference's mean scores."""
        return [self.replicates.mean(column) for column in zip(*self.curves, strict=True)]

    @property
    def curve(self) -> list[float]:
        """The reference's mean scores, made non-decreasing."""
        return isotonic(self.raw_curve)

    @property
    def cost(self) -> float | None:
        """The mean cost of training a teacher."""
        return None if self.costs is None else self.replicates.mean(self.costs)

    def without(self, positions: Collection[int]) -> "Pairing":
        """Return the pairing without the seeds at these positions."""
        kept = [index for index in range(len(self.seeds)) if index not in positions]
        return replace(
            self,
            ends=tuple(tuple(row[index] for index in kept) for row in self.ends),
            curves=tuple(self.curves[index] for index in kept),
            seeds=tuple(self.seeds[index] for index in kept),
            costs=self.costs and tuple(self.costs[index] for index in kept),
            replicates=self.replicates.without(positions),
        )


def pair(reference: Ends, arm: Ends, lengths: tuple[float, ...], higher_is_better: bool) -> Pairing | None:
    """Collect the seeds that have the given lengths of the arm and the reference's curve; None if there are none.

    A reference length that fewer than half of the arm's seeds have finished is left out, so that one early run of a
    long schedule does not exclude all other seeds.

    Args:
        reference: final scores of the reference. Its `teachers` and `teacher_costs` are not used.
        arm: final scores of the arm to compare with it.
        lengths: lengths of the arm.
        higher_is_better: direction of the metric. If lower is better, the scores are negated.
    """
    sign = 1.0 if higher_is_better else -1.0
    columns = [arm.lengths.index(length) for length in lengths]
    theirs = dict(zip(reference.seeds, reference.values, strict=True))
    rows = {
        seed: index
        for index, (seed, values) in enumerate(zip(arm.seeds, arm.values, strict=True))
        if seed in theirs and all(math.isfinite(values[column]) for column in columns)
    }
    finished = [sum(math.isfinite(theirs[seed][index]) for seed in rows) for index in range(len(reference.lengths))]
    kept = [index for index, count in enumerate(finished) if count and 2 * count >= len(rows)]
    seeds = tuple(seed for seed in rows if all(math.isfinite(theirs[seed][index]) for index in kept))
    if not (seeds and kept and columns):
        return None
    found = [rows[seed] for seed in seeds]
    costs = None if arm.teacher_costs is None else tuple(arm.teacher_costs[row] for row in found)
    teachers = None if arm.teachers is None else [arm.teachers[row] for row in found]
    return Pairing(
        lengths=lengths,
        ends=tuple(tuple(sign * arm.values[row][column] for row in found) for column in columns),
        reference_lengths=tuple(reference.lengths[index] for index in kept),
        curves=tuple(tuple(sign * theirs[seed][index] for index in kept) for seed in seeds),
        seeds=seeds,
        costs=costs if costs and all(map(math.isfinite, costs)) else None,
        replicates=Replicates.of(teachers, len(seeds)),
    )
