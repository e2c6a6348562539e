"""What the published records say, as the prose about them writes it."""

import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from known import read_experiment

from w2skd.records.rows import EvalRow, StepRow
from w2skd.records.rundir import RunRecord
from w2skd.report import speedup, units
from w2skd.report.censored import median_crossing
from w2skd.report.contract import Report, RunReport, ThresholdReport
from w2skd.report.crossing import distillation_off
from w2skd.report.equal_quality_text import line_sentence, sentence
from w2skd.report.experiment import Experiment
from w2skd.tasks.catalog import recipe_types

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "docs" / "results"

BCCD, CIFAR, DDPM, LONGER, DEMO, IMAGENETTE, SMALLER = (
    *("bccd_cpu", "cifar10_cpu", "cifar10_ddpm_cpu", "cifar10_ddpm_cpu_longer_teacher"),
    *("demo", "imagenette_cpu", "imagenette_cpu_teacher_32px"),
)
GROWN = "cifar10_grow_cpu"
ARMS = ("baseline", "w2s")


@cache
def report(name: str) -> Report:
    return speedup.build_report(RESULTS / name, recipe_types())


@cache
def records(name: str) -> Experiment:
    return read_experiment(RESULTS / name)


def target(name: str, threshold: str) -> ThresholdReport:
    return next(one for one in report(name).thresholds if one.name == threshold)


def level(name: str, threshold: str) -> str:
    return units.level(target(name, threshold).value, report(name).metric)


def runs(name: str, arm: str) -> list[RunReport]:
    return [run for run in report(name).runs if run.arm == arm]


def ratio(name: str, threshold: str, quantity: str = "") -> str:
    found = target(name, threshold).arms["w2s"].speedup_over_seeds[quantity or f"{report(name).unit}s"]
    return units.median(found)


def spread(name: str, threshold: str) -> str:
    found = target(name, threshold).arms["w2s"].speedup_over_seeds[f"{report(name).unit}s"]
    assert found is not None
    return f"{units.median(found)} ({units.ratio(found.min)} to {units.ratio(found.max)})"


def medians(name: str, quantity: str) -> list[float]:
    """Return the median speed-up at every target, ascending."""
    found = [one.arms["w2s"].speedup_over_seeds[quantity] for one in report(name).thresholds]
    return sorted(one.median for one in found if one and one.median is not None)


def reached(name: str, threshold: str, arm: str) -> list[str]:
    """Return where each seed reached a target."""
    unit = report(name).unit
    places = target(name, threshold).first[arm].values()
    return ["never" if place is None else units.epochs(getattr(place, unit)) for place in places]


def median_reached(name: str, threshold: str, arm: str) -> str:
    one = target(name, threshold)
    found = median_crossing(one, arm, report(name).unit, one.arms["w2s"].seeds)
    assert found is not None
    return f"{'> ' * (found.high > found.low)}{round(found.low, 1):g}"


def equal_quality_sentences(name: str) -> list[str]:
    """Return the primary result of the grown arm and the line through its lengths, each as a sentence."""
    found = report(name).equal_quality["grown"]
    lines = [sentence(found), line_sentence(found) or ""]
    return [f"{line[0].upper()}{line[1:]}" for line in lines]


def listed(values: Sequence[str]) -> str:
    return f"{', '.join(values[:-1])} and {values[-1]}"


def scores(name: str, arm: str, which: str = "best") -> list[float]:
    return [score.value for run in runs(name, arm) if (score := getattr(run, which))]


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def gains(name: str) -> list[str]:
    """Return the smallest and the largest gain in best accuracy, in points."""
    differences = [w2s - baseline for baseline, w2s in zip(*(scores(name, arm) for arm in ARMS), strict=True)]
    return [percent(min(differences)), percent(max(differences))]


def minutes(name: str) -> list[float]:
    """Return the minutes of every student run, validations included, ascending."""
    return sorted(sum(run.clock.values()) / 60 for arm in ARMS for run in runs(name, arm))


def floor(name: str) -> float:
    """Return what a distilled step costs more than a plain one, in FLOPs."""
    return float(runs(name, "w2s")[0].environment["distilled_step_floor"]) - 1


def by_the_clock(name: str) -> float:
    """Return the teacher's seconds per second of the student's, up to the switch, as the median over seeds."""
    shares = []
    for run in records(name).arm("w2s").values():
        off = distillation_off(run.rows)
        assert off is not None
        rows = [row for row in run.rows if isinstance(row, StepRow | EvalRow) and row.step <= off.step]
        shares.append(rows[-1].clock["teacher"] / rows[-1].clock["train"])
    return statistics.median(shares)


def value_at(run: RunRecord, step: int) -> float:
    [found] = [row for row in run.rows if isinstance(row, EvalRow) and row.step == step]
    return found.metrics[run.recipe.metric.name]


def switched_off(name: str) -> list[int]:
    return sorted({round(run.distillation_off.epoch or 0) for run in runs(name, "w2s") if run.distillation_off})


def longer_in_train(name: str, seed: int) -> str:
    """Return how much longer the distilled run's own training took, in percent."""
    clocks = [next(run.clock for run in runs(name, arm) if run.seed == seed) for arm in ARMS]
    return percent(clocks[1]["train"] / clocks[0]["train"] - 1, 0)


def three(values: Sequence[float], digits: int = 2) -> str:
    return listed([f"{value:.{digits}f}" for value in values])


def percents(values: Sequence[float]) -> str:
    return listed([f"{percent(value)}%" for value in values])


def over(values: Sequence[float], digits: int = 0) -> list[str]:
    return [percent(min(values), digits), percent(max(values), digits)]


def delays() -> list[int]:
    """Return by how many epochs each crossing with the smaller images is later."""
    found = []
    for threshold in ("0.85*baseline", "0.90*baseline", "0.95*baseline"):
        small, full = (target(name, threshold).first["w2s"] for name in (SMALLER, IMAGENETTE))
        found += [round(small[seed].epoch - full[seed].epoch) for seed in full]  # type: ignore[union-attr]  # all of them crossed
    return found


def teacher_flops_of_the_longer_training() -> float:
    """Return the operations of its 2,650 steps, which no record holds."""
    first = next(iter(records(LONGER).arm("w2s").values()))
    return 3 * first.environment["forward_flops"]["teacher"] * 2650 * first.recipe.train.batch_size


def forward_share(name: str) -> float:
    flops = runs(name, "w2s")[0].environment["forward_flops"]
    return float(flops["teacher"] / flops["student"])


def parameters(name: str, role: str) -> str:
    return f"{runs(name, 'w2s')[0].environment['parameters'][role]:,}"


def flops(name: str) -> float:
    return float(runs(name, "w2s")[0].environment["forward_flops"]["student"])


def everything(name: str) -> float:
    """Return the minutes of all runs, the teacher's included."""
    return sum(sum(run.clock.values()) for run in report(name).runs) / 60


def teachers_flops(name: str) -> float:
    teacher = report(name).teacher
    assert teacher is not None
    assert teacher.flops is not None
    return teacher.flops


def teachers_epochs(name: str) -> float:
    (teacher,) = records(name).teachers
    return max(row.epoch for row in teacher.rows if isinstance(row, EvalRow))


def without_x(name: str, *thresholds: str) -> list[str]:
    return [value for one in thresholds for value in (ratio(name, one)[:-1], level(name, one))]


def of_seed_1(arm: str | None) -> list[str]:
    names = ("0.85*baseline", "0.90*baseline", "teacher", "0.95*baseline")
    if arm is None:
        return [level(IMAGENETTE, name) for name in names]
    return [*(reached(IMAGENETTE, name, arm)[0] for name in names), percent(scores(IMAGENETTE, arm)[0])]


def machine(name: str) -> str:
    """Return the machine of all runs, each of which used one thread."""
    [(found, threads)] = {(run.environment["device_name"], run.environment["threads"]) for run in report(name).runs}
    assert threads == 1
    return str(found)


def examples(name: str) -> list[int]:
    environment = runs(name, "w2s")[0].environment
    return [environment["train_examples"], environment["eval_examples"]]
