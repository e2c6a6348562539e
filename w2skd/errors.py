"""The errors that w2skd reports to its user, and their exit codes.

    UserError                 1    reported without a traceback
    ├── DataError             1    the examples are missing, damaged or contradictory
    ├── CheckpointError       1    a checkpoint is missing, damaged, unsafe or of another model
    ├── TrainingError         1    the run cannot continue, for example on a non-finite loss
    ├── OutputError           1    results cannot be written: read-only folder, full disk
    ├── UsageError            2    the command asks for something impossible
    │   ├── RecipeError       2    a recipe is missing, unreadable or wrong
    │   ├── RunDirError       2    a run directory contains another run, or is in use
    │   │   ├── RunHeld       2    another process trains in the run directory
    │   │   └── LeaseLost     2    another process has taken the run over
    │   ├── DeviceError       2    the device does not exist
    │   └── GrowthError       2    a teacher cannot grow into the student
    ├── TargetNotReached      3    a required target was not reached
    ├── Stopped              75    a signal asked to stop; a checkpoint was written (EX_TEMPFAIL)
    └── Interrupted         130    Ctrl-C

The command line catches `UserError` and nothing else: any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class UserError(Exception):
    """Base of all errors that a user can fix. The message is written for the user."""

    exit_code: ClassVar[int] = 1


class DataError(UserError):
    """The examples are missing, damaged or contradictory."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, unsafe to load, or belongs to another model."""


class TrainingError(UserError):
    """The run cannot continue."""


class OutputError(UserError):
    """The results cannot be written."""


class UsageError(UserError):
    """The command asks for something impossible."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, unreadable or wrong. The message lists all problems, one per line."""


class RunDirError(UsageError):
    """A run directory contains another run, or is in use by another process."""


class RunHeld(RunDirError):
    """Another process holds the run directory."""


class LeaseLost(RunDirError):
    """Another process has taken the directory over, because this one did not respond."""


class DeviceError(UsageError):
    """The requested device does not exist."""


class GrowthError(UsageError):
    """A teacher cannot grow into the student. The message names the reason and possible sizes or models."""


class TargetNotReached(UserError):
    """A target that the command line required was not reached."""

    exit_code = 3


class Stopped(UserError):
    """A signal stopped the run after it wrote a checkpoint. The same command resumes it."""

    exit_code = 75


class Interrupted(UserError):
    """Ctrl-C stopped the command."""

    exit_code = 130


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to `word`, or an empty string."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
