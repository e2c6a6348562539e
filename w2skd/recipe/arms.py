"""The arms of an experiment: the teacher, the student without help (reference), and the distilled student."""

from typing import Final, Literal

Arm = Literal["teacher", "baseline", "w2s"]

TEACHER: Final = "teacher"
REFERENCE: Final = "baseline"
HELPED: Final = "w2s"

STUDENT_ARMS: Final = (REFERENCE, HELPED)
"""Arms that train the student, starting with the reference."""
