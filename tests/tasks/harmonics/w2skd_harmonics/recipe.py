"""The recipe sections of fitting a sum of harmonics."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from w2skd.recipe.evaluation import Metric, Output
from w2skd.recipe.schema import Recipe, ReportSection, StudentSection, TeacherSection
from w2skd.recipe.section import Section

Network = Literal["mlp_4", "mlp_16"]


class HarmonicsData(Section):
    """Points on a curve.

    Attributes:
        harmonics: number of sines that are summed.
        train_examples: points to train on.
        eval_examples: points to score on.
        workers: data workers per rank.
        worker_timeout_s: longest wait for a batch.
    """

    harmonics: PositiveInt = 3
    train_examples: PositiveInt = 96
    eval_examples: PositiveInt = 50
    workers: NonNegativeInt = 0
    worker_timeout_s: PositiveFloat = 60.0


class HarmonicsTeacher(TeacherSection):
    """The narrower network."""

    model: Network


class HarmonicsStudent(StudentSection):
    """The wider network."""

    model: Network


class HarmonicsReport(ReportSection):
    """The root mean squared error on the evaluation points, and the largest error."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("rmse", higher_is_better=False),
        Metric("max_error", higher_is_better=False),
    )
    metric: str = "rmse"


class HarmonicsRecipe(Recipe):
    """An experiment on a sum of harmonics."""

    outputs: ClassVar[Mapping[str, Output]] = {"curve": Output("Write the fitted curve: .csv.", (".csv",))}
    task: Literal["harmonics"]
    data: HarmonicsData = HarmonicsData()
    teacher: HarmonicsTeacher
    student: HarmonicsStudent
    noise: Annotated[float, Field(ge=0)] = 0.05
    report: HarmonicsReport = HarmonicsReport()

    @classmethod
    def task_type(cls) -> type[Any]:
        """See `Recipe.task_type`."""
        from w2skd_harmonics.task import HarmonicsTask

        return HarmonicsTask
