"""Mean and sampling error over seeds, some of which share a teacher.

Seeds that share a teacher are not independent. With three or more teachers, the teachers are the independent units: the
mean is the mean of the teachers' means, and its error is estimated from their spread. One or two teachers do not show
how much teachers differ. Then the error is estimated from the spread of seeds within teachers, and it holds only for
those teachers.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

FEWEST_TEACHERS = 3
FEWEST_DF = 2
"""With fewer degrees of freedom there is no interval: with one, the 95% quantile of t is 12.7."""


@dataclass(frozen=True)
class Replicates:
    """Seeds grouped by the teacher that they share.

    Attributes:
        groups: positions of the seeds of each teacher; one position per group if no teacher is shared.
    """

    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, teachers: Sequence[Hashable] | None, seeds: int) -> "Replicates":
        """Group seeds by teacher. With None, every seed is a group of its own."""
        if teachers is None:
            return cls(tuple((index,) for index in range(seeds)))
        groups: dict[Hashable, list[int]] = {}
        for index, teacher in enumerate(teachers):
            groups.setdefault(teacher, []).append(index)
        return cls(tuple(tuple(group) for group in groups.values()))

    @cached_property
    def seeds(self) -> int:
        """The number of seeds."""
        return sum(len(group) for group in self.groups)

    @cached_property
    def is_shared(self) -> bool:
        """Whether any seeds share a teacher."""
        return len(self.groups) < self.seeds

    @property
    def is_over_teachers(self) -> bool:
        """Whether the error includes the variation between teachers."""
        return len(self.groups) >= FEWEST_TEACHERS

    @property
    def df(self) -> int:
        """Degrees of freedom of the error of the mean; below `FEWEST_DF` there is no interval."""
        return len(self.groups) - 1 if self.is_over_teachers else self.seeds - len(self.groups)

    def mean(self, values: Sequence[float]) -> float:
        """Return the mean over groups of the mean within each group.

        Args:
            values: one value per seed.
        """
        means = self._means(values)
        return sum(means) / len(means)

    def covariance(self, first: Sequence[float], second: Sequence[float]) -> float:
        """Return the estimated covariance of the means of two quantities; the variance if both are the same.

        Args:
            first: one value per seed.
            second: one value per seed.
        """
        count = len(self.groups)
        means = self._means(first), self._means(second)
        if self.is_over_teachers:
            centre = sum(means[0]) / count, sum(means[1]) / count
            products = sum((a - centre[0]) * (b - centre[1]) for a, b in zip(*means, strict=True))
            return products / (count - 1) / count
        within = sum(
            (first[index] - a) * (second[index] - b)
            for group, a, b in zip(self.groups, *means, strict=True)
            for index in group
        )
        return within / self.df * sum(1 / len(group) for group in self.groups) / count**2

    def deletions(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """Yield the deletions of a jackknife: the positions of the deleted seeds, and the weight of the deletion.

        If a deletion changes an estimate by -c, assign the value weight * c to every deleted seed. The `covariance` of
        these values is then the jackknife estimate of the variance.
        """
        for group in self.groups:
            if self.is_over_teachers:
                yield group, len(self.groups) - 1
            elif len(group) > 1:
                for position in group:
                    yield (position,), len(self.groups) * (len(group) - 1)

    def without(self, positions: Collection[int]) -> "Replicates":
        """Return the grouping without the seeds at these positions."""
        kept = [index for index in range(self.seeds) if index not in positions]
        new = {old: index for index, old in enumerate(kept)}
        groups = (tuple(new[old] for old in group if old in new) for group in self.groups)
        return Replicates(tuple(group for group in groups if group))

    def _means(self, values: Sequence[float]) -> list[float]:
        if not self.is_shared:
            return list(values)
        return [sum([values[index] for index in group]) / len(group) for group in self.groups]
