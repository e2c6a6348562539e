"""Names of an experiment's runs, which are also the paths of their directories."""

from pathlib import Path
from typing import NamedTuple

from w2skd.recipe.arms import TEACHER, Arm, is_arm_name


class RunName(NamedTuple):
    """Identifies one run of an experiment.

    Attributes:
        arm: an arm of the recipe, or `TEACHER`.
        seed: seed of the run; None for the only teacher of an experiment.
        length: length of the schedule as a share of the recipe's.
    """

    arm: Arm
    seed: int | None
    length: float = 1.0

    def __str__(self) -> str:
        parts = [self.arm]
        if self.length != 1.0:
            parts.append(f"length{self.length:.12g}")
        if self.seed is not None:
            parts.append(f"seed{self.seed}")
        return "/".join(parts)

    def within(self, experiment: Path) -> Path:
        """Return the run's directory."""
        return experiment / str(self)

    @classmethod
    def parse(cls, path: Path) -> "RunName | None":
        """Parse a path relative to the experiment; None if it is not the path of a run."""
        arm, *rest = path.parts
        length, seed = 1.0, None
        for part in rest:
            word = "seed" if part.startswith("seed") else "length"
            number = part.removeprefix(word)
            try:
                if word == "seed":
                    seed = int(number) if number.isdecimal() else None
                else:
                    length = float(number)
            except ValueError:
                return None
        name = cls(arm, seed, length)
        known = arm == TEACHER or (is_arm_name(arm) and seed is not None)
        return name if known and str(name) == path.as_posix() else None
