"""The arms of an experiment: the teacher's own run, the reference, and the run that a teacher helps."""

from typing import Final, Literal

Arm = Literal["teacher", "baseline", "w2s"]

TEACHER: Final = "teacher"
REFERENCE: Final = "baseline"
HELPED: Final = "w2s"

STUDENT_ARMS: Final = (REFERENCE, HELPED)
"""Arms that train the student, the one that others are measured against first."""
