"""Every way in which w2skd says no to its user, and the exit code that goes with it.

    UserError                 1    one clear line, no traceback
    ├── DataError             1    the examples are missing, damaged or contradictory
    ├── CheckpointError       1    a checkpoint is missing, damaged, unsafe or of another model
    ├── TrainingError         1    the run cannot go on, for instance on a non-finite loss
    ├── OutputError           1    the results cannot be written: read-only folder, full disk
    ├── UsageError            2    the command asks for something that cannot be done
    │   ├── RecipeError       2    a recipe is missing, unreadable or wrong
    │   ├── RunDirError       2    a run directory holds another run, or is in use
    │   └── DeviceError       2    the device is not there
    ├── TargetNotReached      3    a required target was not reached
    ├── Stopped              75    a signal asked to stop; a checkpoint was written (EX_TEMPFAIL)
    └── Interrupted         130    Ctrl-C

The command line catches `UserError` and nothing else: any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class UserError(Exception):
    """Base of all errors that a user can mend. The message is what the user reads."""

    exit_code: ClassVar[int] = 1


class DataError(UserError):
    """The examples are missing, damaged or contradictory."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, unsafe to load, or belongs to another model."""


class TrainingError(UserError):
    """The run cannot go on."""


class OutputError(UserError):
    """The results cannot be written."""


class UsageError(UserError):
    """The command asks for something that cannot be done."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, unreadable or wrong. The message lists all problems, one a line."""


class RunDirError(UsageError):
    """A run directory holds another run, or another process is using it."""


class DeviceError(UsageError):
    """The requested device is not there."""


class TargetNotReached(UserError):
    """A target that the command line required was not reached."""

    exit_code = 3


class Stopped(UserError):
    """A signal asked to stop and a checkpoint was written: the same command goes on from there."""

    exit_code = 75


class Interrupted(UserError):
    """Ctrl-C."""

    exit_code = 130


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the known word nearest to `word`, or an empty string."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
