"""What the command line says beside the recipe. Without torch, so that it costs the command line nothing."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the recipe.

    Attributes:
        out: the experiment's directory.
        resume: ``auto`` goes on with what is there, ``never`` refuses a directory that holds a run, and a path names
            the checkpoint of this run to go on from.
        overwrite: discard a run that is there.
        init_from: weights to start from instead of a fresh initialisation.
        device: ``auto``, ``cpu``, ``cuda`` (one GPU a rank), ``cuda:1``.
        quiet: show events and results only.
        plugin: the user's own file with models.
    """

    out: Path
    resume: str = "auto"
    overwrite: bool = False
    init_from: Path | None = None
    device: str = "auto"
    quiet: bool = False
    plugin: Path | None = None

    @property
    def named_checkpoint(self) -> Path | None:
        """The checkpoint that `resume` names, if it names one."""
        return None if self.resume in ("auto", "never") else Path(self.resume)
