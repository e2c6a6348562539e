"""Mean and sampling error over seeds, some of which share a teacher.

Seeds that share a teacher are not independent, so with three or more teachers the independent units are the teachers:
the mean is that of the teachers' means, and its error comes from their spread. One or two teachers cannot show how
much teachers differ. The error then comes from the spread of seeds within teachers, and it holds for those teachers
only.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

FEWEST_TEACHERS = 3
FEWEST_DF = 2
"""Fewer degrees of freedom give no interval: with one, the 95% quantile of t is 12.7."""


@dataclass(frozen=True)
class Replicates:
    """Seeds grouped by the teacher that they share.

    Attributes:
        groups: the positions of the seeds of each teacher; one position each if no teacher is shared.
    """

    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, teachers: Sequence[Hashable] | None, seeds: int) -> "Replicates":
        """Group seeds by teacher; None puts every seed into a group of its own."""
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
        """Whether the error counts that another teacher would give another result."""
        return len(self.groups) >= FEWEST_TEACHERS

    @property
    def df(self) -> int:
        """Degrees of freedom of the error of the mean; below `FEWEST_DF` there is no interval."""
        return len(self.groups) - 1 if self.is_over_teachers else self.seeds - len(self.groups)

    def mean(self, values: Sequence[float]) -> float:
        """Return the mean over groups of the mean within each.

        Args:
            values: one per seed.
        """
        means = self._means(values)
        return sum(means) / len(means)

    def covariance(self, first: Sequence[float], second: Sequence[float]) -> float:
        """Return the estimated covariance of the means of two quantities; their variance if they are the same.

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
        """Yield what a jackknife leaves out: positions of seeds, and the weight of the resulting change.

        If leaving out the positions changes an estimate by -c, and every seed among them gets the value weight * c,
        then `covariance` of these values is the jackknife's variance of the estimate.
        """
        for group in self.groups:
            if self.is_over_teachers:
                yield group, len(self.groups) - 1
            elif len(group) > 1:
                for position in group:
                    yield (position,), len(self.groups) * (len(group) - 1)

    def without(self, positions: Collection[int]) -> "Replicates":
        """Return the grouping of the seeds that remain without those at these positions."""
        kept = [index for index in range(self.seeds) if index not in positions]
        new = {old: index for index, old in enumerate(kept)}
        groups = (tuple(new[old] for old in group if old in new) for group in self.groups)
        return Replicates(tuple(group for group in groups if group))

    def _means(self, values: Sequence[float]) -> list[float]:
        if not self.is_shared:
            return list(values)
        return [sum([values[index] for index in group]) / len(group) for group in self.groups]
