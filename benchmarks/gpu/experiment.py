"""Many small runs on one GPU at once: does distillation from a weaker model save epochs?

ResNet-8 teaches ResNet-20 on CIFAR-10 images (`experiment.yaml`). The script chooses the learning rate for the baseline
alone, on a seed that is not reported. Then it trains three teachers and, for each seed and each schedule length, the
arms baseline, label smoothing (a control without a teacher) and w2s. Seed s learns from teacher s mod 3. Seeds are
completed one after the other, so an interrupted script has complete seeds. Seconds come from runs that are alone on the
GPU; one of them is the recipe `cifar10_fast`.

    python benchmarks/gpu/experiment.py --out FILE --data DIR [--budget-s 280] [--processes 14] [--tiny]
"""

import argparse
import multiprocessing
import queue
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from results import Results

RECIPE = Path(__file__).with_name("experiment.yaml")
FAST = "cifar10_fast"
LABEL_SMOOTHING = 0.1
TUNING_SEED = 100
LEARNING_RATES = (0.4, 0.8, 1.6)
SLACK = 1.2
"""A run starts only if the remaining budget is at least this multiple of the slowest run of its length so far."""

ARMS = ("baseline", "label_smoothing", "w2s")


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment."""

    lengths_epochs: Sequence[int]
    seeds: int
    teachers: int
    learning_rates: Sequence[float]
    settings: Sequence[str]
    fast_epochs: int
    fast_settings: Sequence[str]
    device: str


FULL = Plan(
    (6, 9, 12, 16),
    seeds=12,
    teachers=3,
    learning_rates=LEARNING_RATES,
    settings=(),
    fast_epochs=10,
    fast_settings=("data.source=image_folder", "data.image_size=32"),
    device="cuda",
)
TINY = Plan(
    (1, 2),
    seeds=2,
    teachers=1,
    learning_rates=(0.1, 0.2),
    settings=(
        *("data.source=shapes", "data.train_examples=256", "data.eval_examples=128", "data.image_size=16"),
        *("student.model=cifar_resnet8", "teacher.model=small_cnn_weak", "teacher.train.epochs=1"),
        *("train.batch_size=32", "train.precision=fp32", "data.feed=resident"),
    ),
    fast_epochs=1,
    fast_settings=("student.model=whitened_cnn_w16",),
    device="cpu",
)


@dataclass(frozen=True)
class Job:
    """One run. `out` is its experiment, `arm` is ``teacher`` or one of `ARMS`."""

    out: Path
    arm: str
    seed: int
    epochs: int
    settings: tuple[str, ...]
    device: str
    recipe: str = str(RECIPE)

    @property
    def name(self) -> str:
        return f"{self.out.name}/{self.arm}/seed{self.seed}"


def run(job: Job) -> dict[str, Any]:
    """Train one run and return its validations. Runs in a process of the pool."""
    import torch

    from w2skd.platform.ranks import Ranks
    from w2skd.recipe.arms import TEACHER
    from w2skd.recipe.load import load_recipe
    from w2skd.records.rows import EvalRow, EventRow
    from w2skd.records.rundir import read_run
    from w2skd.runs.arm import train_arm
    from w2skd.runs.options import RunOptions
    from w2skd.tasks.catalog import recipe_types

    torch.set_num_threads(1)
    recipe = load_recipe(job.recipe, [*job.settings, f"seed={job.seed}"], recipe_types())
    arm = job.arm if job.arm in (TEACHER, *recipe.arms) else recipe.reference
    began = time.monotonic()
    path = train_arm(recipe, arm, RunOptions(job.out, device=job.device, quiet=True), Ranks())
    rows = read_run(path, recipe_types()).rows
    evaluations = [row for row in rows if isinstance(row, EvalRow)]
    off = [row for row in rows if isinstance(row, EventRow) and row.name == "distillation_off"]
    return {
        **{"arm": job.arm, "seed": job.seed, "epochs": job.epochs},
        "wall_s": round(time.monotonic() - began, 2),
        "top1": [round(row.metrics["top1"], 5) for row in evaluations],
        "at_epoch": [row.epoch for row in evaluations],
        "clock": evaluations[-1].clock,
        "off_epoch": off[0].details["epoch"] if off else None,
    }


class Pool:
    """Processes that run jobs until the budget is spent."""

    def __init__(self, processes: int, results: Results, budget_s: float):
        self._processes = processes
        self._results = results
        self._budget_s = budget_s
        self._pool = multiprocessing.get_context("spawn").Pool(processes)
        self._done: queue.Queue[tuple[Job, dict[str, Any] | BaseException]] = queue.Queue()
        self._slowest: dict[int, float] = {}

    def finish(self, jobs: Sequence[Job], *, counts: int = 1) -> dict[Job, dict[str, Any]]:
        """Run the jobs that fit into the budget, in their order, and return their results."""
        waiting, running, found = list(jobs), 0, {}
        while waiting or running:
            while waiting and running < self._processes and self._fits(waiting[0]):
                self._start(waiting.pop(0))
                running += 1
            if not running:
                break  # the rest does not fit
            try:
                job, outcome = self._done.get(timeout=max(0.1, self._budget_s - self._results.seconds))
            except queue.Empty:
                break
            running -= 1
            if isinstance(outcome, BaseException):
                self._results.fail(job.name, outcome)
                continue
            found[job] = outcome
            self._slowest[job.epochs] = max(outcome["wall_s"], self._slowest.get(job.epochs, 0.0))
            self._results.add(job.name, outcome, counts=counts)
        if waiting:
            self._results.add("left_out", [job.name for job in waiting], counts=0)
        return found

    def close(self) -> None:
        """Stop all processes, including those that still run a job."""
        self._pool.terminate()

    def _start(self, job: Job) -> None:
        def put(outcome: dict[str, Any] | BaseException) -> None:
            self._done.put((job, outcome))

        self._pool.apply_async(run, (job,), callback=put, error_callback=put)

    def _fits(self, job: Job) -> bool:
        rates = [seconds / epochs for epochs, seconds in self._slowest.items()]
        expected = self._slowest.get(job.epochs, max(rates, default=0.0) * job.epochs)
        return self._results.seconds + SLACK * expected < self._budget_s


def best_learning_rate(pool: Pool, job: Callable[..., Job], plan: Plan) -> float:
    """Return the rate with the baseline's highest mean final top-1 over the shortest and the longest schedule."""
    lengths = (min(plan.lengths_epochs), max(plan.lengths_epochs))
    jobs = {
        (rate, epochs): job(f"tune_lr{rate}_{epochs}ep", "baseline", TUNING_SEED, epochs, f"train.optimizer.lr={rate}")
        for rate in plan.learning_rates
        for epochs in lengths
    }
    found = pool.finish(list(jobs.values()), counts=0)
    ends = {
        rate: sum(found[jobs[rate, epochs]]["top1"][-1] for epochs in lengths)
        for rate in plan.learning_rates
        if all(jobs[rate, epochs] in found for epochs in lengths)
    }
    if not ends:
        raise RuntimeError("no learning rate finished both lengths: the budget is too small, or runs failed")
    return max(ends, key=lambda rate: ends[rate])


def student_jobs(job: Callable[..., Job], plan: Plan, teachers: Sequence[Path], rate: str) -> Iterator[Job]:
    """Yield all runs of students, complete seeds first."""
    for seed in range(plan.seeds):
        teacher = seed % len(teachers)
        for epochs in plan.lengths_epochs:
            name = f"{epochs}ep_teacher{teacher}"
            yield job(name, "baseline", seed, epochs, rate)
            smoothing = f"loss.label_smoothing={LABEL_SMOOTHING}"
            yield job(f"{epochs}ep_smoothed", "label_smoothing", seed, epochs, rate, smoothing)
            yield job(name, "w2s", seed, epochs, rate, f"teacher.checkpoint={teachers[teacher]}")


def make_job(
    plan: Plan, scratch: Path, data: tuple[str, ...], folder: str, arm: str, seed: int, epochs: int, *settings: str
) -> Job:
    """Return a run in a folder of its experiment, with the plan's settings and its own."""
    length = f"teacher.train.epochs={epochs}" if arm == "teacher" else f"train.epochs={epochs}"
    return Job(scratch / folder, arm, seed, epochs, (*plan.settings, *data, length, *settings), plan.device)


def fast_job(job: Callable[..., Job], plan: Plan) -> Job:
    """Return a run of the recipe `cifar10_fast`."""
    return replace(job(FAST, "baseline", 0, plan.fast_epochs, *plan.fast_settings), recipe=FAST)


def check_recipes(plan: Plan, scratch: Path) -> None:
    """Load the recipe of every run of a plan, without training."""
    from w2skd.recipe.load import load_recipe
    from w2skd.tasks.catalog import recipe_types

    job = partial(make_job, plan, scratch, ())
    jobs = [*student_jobs(job, plan, [scratch], "train.optimizer.lr=0.1"), fast_job(job, plan)]
    for recipe, settings in {(one.recipe, one.settings) for one in jobs}:
        load_recipe(recipe, list(settings), recipe_types())


def summarise(runs: Sequence[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """Return the median final top-1 per arm and length, and the shortest schedules that reach each baseline."""
    ends: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        for epochs in plan.lengths_epochs:
            finals = [each["top1"][-1] for each in runs if (each["arm"], each["epochs"]) == (arm, epochs)]
            if finals:
                ends.setdefault(arm, {})[f"{epochs}ep"] = {
                    "median_top1": round(median(finals), 5),
                    "seeds": len(finals),
                }
    return {"final": ends, "shortest_schedule": _shortest(ends, plan)}


def _shortest(ends: dict[str, dict[str, Any]], plan: Plan) -> dict[str, Any]:
    """For each length of the baseline, return each arm's shortest complete schedule that ends at least as high."""
    shortest = {}
    for epochs in plan.lengths_epochs:
        target = ends.get("baseline", {}).get(f"{epochs}ep")
        if target is None:
            continue
        shortest[f"baseline_{epochs}ep"] = {
            arm: min((n for n in plan.lengths_epochs if _reaches(ends, arm, n, target["median_top1"])), default=None)
            for arm in ARMS
        }
    return shortest


def _reaches(ends: dict[str, dict[str, Any]], arm: str, epochs: int, top1: float) -> bool:
    found = ends.get(arm, {}).get(f"{epochs}ep")
    return found is not None and found["median_top1"] >= top1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 images in train/ and test/")
    parser.add_argument("--budget-s", type=float, default=280.0, help="seconds for the whole part [280]")
    parser.add_argument("--processes", type=int, default=14, help="runs at once [14]")
    parser.add_argument("--tiny", action="store_true", help="rehearse on the CPU with generated images")
    options = parser.parse_args()
    plan = TINY if options.tiny else FULL
    results = Results(options.out, recipe=RECIPE.read_text(), settings=list(plan.settings), seeds=plan.seeds)
    scratch = Path(tempfile.mkdtemp())
    data = () if options.data is None else (f"data.root={options.data}",)

    job = partial(make_job, plan, scratch, data)
    if options.tiny:
        check_recipes(FULL, scratch)
    pool = Pool(options.processes, results, options.budget_s)
    try:
        rate = f"train.optimizer.lr={best_learning_rate(pool, job, plan)}"
        results.add("learning_rate", rate, counts=0)
        longest = max(plan.lengths_epochs)
        trained = pool.finish([job(f"teacher{n}", "teacher", n, longest, rate) for n in range(plan.teachers)])
        teachers = [each.out / "teacher" for each in trained]
        if not teachers:
            raise RuntimeError("no teacher was trained: the budget is too small")
        runs = list(pool.finish(list(student_jobs(job, plan, teachers, rate))).values())
        results.add("summary", summarise(runs, plan), counts=0)
        for arm in ("baseline", "w2s"):  # one after the other, for their seconds
            teacher = f"teacher.checkpoint={teachers[0]}"
            pool.finish([job("alone", arm, TUNING_SEED, min(plan.lengths_epochs), rate, teacher)], counts=0)
        pool.finish([fast_job(job, plan)])
    finally:
        pool.close()


if __name__ == "__main__":
    main()
