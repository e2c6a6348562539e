"""Numbers in the prose about published results are those of the records."""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from known import read_run

from w2skd.records.rows import EvalRow, EventRow, StepRow

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
PROSE = RESULTS / "README.md"
SEEDS = (1, 2, 3)


def report(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name / "report" / "report.json").read_text())


def scores(name: str, arm: str, kind: str) -> list[float]:
    runs = {run["run"]: run for run in report(name)["runs"]}
    return [runs[f"{arm}/seed{seed}"][kind]["value"] for seed in SEEDS]


def speedup(name: str, target: str, quantity: str = "epochs") -> float:
    [found] = [each for each in report(name)["thresholds"] if each["name"] == target]
    return found["speedup_over_seeds"][quantity]["median"]


def gains_in_best(name: str) -> list[str]:
    arms = (scores(name, arm, "best") for arm in ("w2s", "baseline"))
    gains = [100 * (ours - theirs) for ours, theirs in zip(*arms, strict=True)]
    return [f"{gain:.1f}" for gain in (min(gains), max(gains))]


def step_cost(name: str) -> str:
    flops = next(run["environment"]["forward_flops"] for run in report(name)["runs"] if run["arm"] == "w2s")
    return f"{100 * flops['teacher'] / (3 * flops['student']):.1f}"


def step_cost_by_the_clock(name: str) -> str:
    """The teacher's share of the student's time while distillation was on, the median over seeds."""
    shares = []
    for seed in SEEDS:
        rows = read_run(RESULTS / name / "w2s" / f"seed{seed}").rows
        off = next(row.step for row in rows if isinstance(row, EventRow) and row.name == "distillation_off")
        clock = [row for row in rows if isinstance(row, StepRow | EvalRow) and row.step <= off][-1].clock
        shares.append(clock["teacher"] / clock["train"])
    return f"{100 * statistics.median(shares):.1f}"


def minutes(name: str) -> list[str]:
    students = [run for run in report(name)["runs"] if run["arm"] != "teacher"]
    total = [sum(run["clock"].values()) / 60 for run in students]
    return [f"{value:.1f}" for value in (min(total), max(total))]


def three(values: list[float], factor: float = 1.0, digits: int = 2) -> list[str]:
    return [f"{factor * value:.{digits}f}" for value in values]


def ratios(name: str, *targets: str, quantity: str = "epochs") -> list[str]:
    return [f"{speedup(name, target, quantity):.2f}" for target in targets]


LONGER = "cifar10_ddpm_cpu_longer_teacher"
SHARES = ("0.85*baseline", "0.90*baseline", "teacher")
CLAIMS: dict[str, tuple[Path, str, Callable[[], list[str]]]] = {
    "imagenette, points": (
        PROSE,
        r"best accuracies were ([\d.]+) to ([\d.]+) points higher",
        lambda: gains_in_best("imagenette_cpu"),
    ),
    "imagenette, epochs": (
        PROSE,
        r"crossed every level earlier: ([\d.]+) times at 62\.4%, ([\d.]+) at 66\.1%, and ([\d.]+) at the teacher's",
        lambda: ratios("imagenette_cpu", *SHARES),
    ),
    "imagenette, FLOPs": (
        PROSE,
        r"In FLOPs the speed-ups were ([\d.]+), ([\d.]+) and ([\d.]+) times",
        lambda: ratios("imagenette_cpu", *SHARES, quantity="flops"),
    ),
    "imagenette at 32 px, clock": (
        PROSE,
        r"took ([\d.]+)% of the student's training time instead of ([\d.]+)% \(clock",
        lambda: [step_cost_by_the_clock(name) for name in ("imagenette_cpu_teacher_32px", "imagenette_cpu")],
    ),
    "cifar10, clock": (PROSE, r"in time it cost ([\d.]+)% more", lambda: [step_cost_by_the_clock("cifar10_cpu")]),
    "cifar10, points": (PROSE, r"and ended ([\d.]+) to ([\d.]+) points higher", lambda: gains_in_best("cifar10_cpu")),
    "diffusion, longer teacher, FLOPs": (
        PROSE,
        r"a distilled step costs ([\d.]+)% more \(([\d.]+)% by the clock\)",
        lambda: [
            step_cost(LONGER),
            step_cost_by_the_clock(LONGER),
        ],
    ),
    "diffusion, longer teacher, final": (
        PROSE,
        r"\| final \| ([\d.]+), ([\d.]+) and ([\d.]+) \| ([\d.]+), ([\d.]+) and ([\d.]+) \|",
        lambda: [
            *three(scores(LONGER, "w2s", "final")),
            *three(scores(LONGER, "baseline", "final")),
        ],
    ),
    "diffusion, final": (
        PROSE,
        r"final FIDs are ([\d.]+), ([\d.]+) and ([\d.]+) with the teacher and ([\d.]+), ([\d.]+) and ([\d.]+) w",
        lambda: [
            *three(scores("cifar10_ddpm_cpu", "w2s", "final")),
            *three(scores("cifar10_ddpm_cpu", "baseline", "final")),
        ],
    ),
    "BCCD, best": (
        PROSE,
        r"\| best \| ([\d.]+)%, ([\d.]+)% and ([\d.]+)% \| ([\d.]+)%, ([\d.]+)% and ([\d.]+)% \|",
        lambda: [
            *three(scores("bccd_cpu", "w2s", "best"), 100, 1),
            *three(scores("bccd_cpu", "baseline", "best"), 100, 1),
        ],
    ),
    "BCCD, FLOPs": (
        PROSE,
        r"in FLOPs the speed-up is ([\d.]+)x at 60% and ([\d.]+)x at the teacher's level",
        lambda: ratios("bccd_cpu", "0.6", "teacher", quantity="flops"),
    ),
    "BCCD, at 79%": (PROSE, r"\(([\d.]+)x at 79\.0%, where", lambda: ratios("bccd_cpu", "0.95*baseline")),
    "BCCD, minutes": (
        ROOT / "recipes" / "bccd_cpu.yaml",
        r"three seeds, ([\d.]+) to ([\d.]+) minutes a run",
        lambda: minutes("bccd_cpu"),
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_numbers_in_the_text_are_those_of_the_records(claim: str) -> None:
    page, pattern, expected = CLAIMS[claim]
    found = re.search(pattern, page.read_text(encoding="utf-8"))
    assert found is not None, f"{page.name} no longer says: {pattern}"
    assert list(found.groups()) == expected()


def test_the_text_says_which_records_are_missing() -> None:
    assert "The records of the tuning runs and of the label-smoothing controls were not kept" in PROSE.read_text()


@pytest.mark.parametrize(
    "name", ["bccd_cpu", "imagenette_cpu", "imagenette_cpu_teacher_32px", "cifar10_ddpm_cpu", "cifar10_cpu"]
)
def test_the_machine_is_that_of_the_records(name: str) -> None:
    machines = {run["environment"]["device_name"] for run in report(name)["runs"]}
    section = PROSE.read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    [machine] = machines
    assert ("AMD EPYC" if "EPYC" in machine else "Intel Xeon") in section
