"""The arms of an experiment: the teacher's own training, the reference run, and the run with distillation."""

from typing import Final, Literal

Arm = Literal["teacher", "baseline", "w2s"]

TEACHER: Final = "teacher"
REFERENCE: Final = "baseline"
HELPED: Final = "w2s"

STUDENT_ARMS: Final = (REFERENCE, HELPED)
"""Arms that train the student, the reference first."""
