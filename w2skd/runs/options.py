"""What a command asks for beside the recipe. Free of torch, so that the command line starts fast."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from w2skd.platform.lease import Watch


@dataclass(frozen=True)
class RunOptions:
    """Options of a command that trains.

    Attributes:
        out: directory of the experiment.
        resume: ``auto`` resumes an existing run, ``never`` refuses a directory that holds one, and a path names the
            checkpoint of this run to resume from.
        overwrite: discard an existing run.
        init_from: weights to start from instead of a fresh initialisation.
        init_weights: which of several sets of tensors in that file; None chooses.
        device: ``auto``, ``cpu``, ``cuda`` (one GPU per rank) or ``cuda:N``.
        quiet: print events and results only.
        plugin: the user's own Python file with models.
        allow_changed_data: continue a run, or an experiment, on other data than before.
        length: length of the schedule as a share of the recipe's, one of its `lengths`.
        teacher_seed: seed of one of the experiment's teachers; None if it has only one.
        watch: finds runs of processes that stopped responding, in order to take them over; None leaves them alone.
    """

    out: Path
    resume: str = "auto"
    overwrite: bool = False
    init_from: Path | None = None
    init_weights: str | None = None
    device: str = "auto"
    quiet: bool = False
    plugin: Path | None = None
    allow_changed_data: bool = False
    length: float = 1.0
    teacher_seed: int | None = None
    watch: Watch | None = None

    @property
    def named_checkpoint(self) -> Path | None:
        """The checkpoint that `resume` names, if it is a path."""
        return None if self.resume in ("auto", "never") else Path(self.resume)

    @property
    def command_to_resume(self) -> str:
        """The command that resumes a stopped run, in words."""
        if self.overwrite:
            return "the same command without --overwrite"
        return "the same command" if self.named_checkpoint is None else "the same command without --resume"


@dataclass(frozen=True)
class ScoreOptions:
    """Options of a command that evaluates a model.

    Attributes:
        checkpoint: a finished run, a file with weights, or ``pretrained`` (``pretrained:TAG``).
        model: the architecture, if it differs from the recipe's.
        recipe: file or name of a recipe that replaces the one inside the checkpoint; required where there is none.
        overrides: ``a.b=c`` settings on top of the recipe.
        role: ``teacher`` or ``student`` of the recipe; None takes the checkpoint's own role, else the student.
        device: as in `RunOptions`.
        plugin: as in `RunOptions`.
        weights: which of several sets of tensors in the checkpoint; None chooses.
        outputs: names of the files to prepare, as in `Recipe.outputs`, and ``pictures``.
    """

    checkpoint: Path
    model: str | None = None
    recipe: str | None = None
    overrides: Sequence[str] = ()
    role: str | None = None
    device: str = "auto"
    plugin: Path | None = None
    weights: str | None = None
    outputs: Collection[str] = ()
