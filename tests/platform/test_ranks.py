"""Two ranks against a single process, end to end: same training, one set of files, no rank that hangs."""

import json
import os
import shutil
import signal
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from known import read_run, validate_recipe
from processes import Outcome, run_ranks, values
from torch import nn

from w2skd.errors import DataError, OutputError, Stopped, UsageError
from w2skd.models import catalog
from w2skd.models.small_cnn import SmallCnn
from w2skd.platform.ranks import Ranks, process_group
from w2skd.recipe.arms import Arm
from w2skd.recipe.schema import Recipe
from w2skd.records.names import RunName
from w2skd.records.rows import EvalRow, EventRow, Row, StepRow
from w2skd.records.rundir import RunDir
from w2skd.runs import arm
from w2skd.runs.arm import train_arm
from w2skd.runs.options import RunOptions, ScoreOptions
from w2skd.runs.score import score_model
from w2skd.tasks.classification.task import ClassificationTask
from w2skd.weights.load import load_weights

STEPS = 12
EVALUATION_EXAMPLES = 33


class WithDropout(nn.Module):
    """A student with dropout."""

    def __init__(self, classes: int):
        super().__init__()
        self.body = SmallCnn((8, 16), 16)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


@pytest.fixture(autouse=True)
def _student_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.CLASSIFIERS, "small_cnn_strong", WithDropout)


def recipe(teacher: Path | None = None, **train: Any) -> Recipe:
    """Return a recipe with three steps per epoch. The teacher of `save_teacher` has a far higher loss."""
    return validate_recipe(
        {
            "name": "ranks",
            "task": "classification",
            "data": {"source": "shapes", "train_examples": 90, "eval_examples": EVALUATION_EXAMPLES, "image_size": 16},
            "teacher": {"model": "small_cnn_weak", "checkpoint": teacher and str(teacher)},
            "student": {"model": "small_cnn_strong"},
            "train": {
                "steps": STEPS,
                "batch_size": 32,
                "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9},
                "lr_schedule": {"name": "constant"},
                "validate_every": "3step",
                "log_every": 1,
                "deterministic": True,
                **train,
            },
            "distill": {"weight": 0.2, "warmup": "0step", "hold": "9step", "decay": "0step"},
            "report": {"metric": "loss"},
        },
        "test",
    )


def save_teacher(path: Path) -> Path:
    """Save a teacher that always predicts class 0 with high confidence."""
    model = catalog.build_classifier("small_cnn_weak", 10)
    nn.init.zeros_(model.head.weight)
    model.head.bias.data.copy_(torch.tensor([6.0] + [0.0] * 9))
    torch.save(model.state_dict(), path)
    return path


def options(out: Path, **changes: Any) -> RunOptions:
    return RunOptions(out, device="cpu", quiet=True, **changes)


def arm_on(ranks: Ranks, recipe: Recipe, arm: Arm, out: Path, notes: Path | None = None, stop_at: int = -1) -> Path:
    """Train one arm as this rank and note the ids of its batches. At step `stop_at` the last rank gets a SIGTERM."""
    catalog.CLASSIFIERS["small_cnn_strong"] = WithDropout
    losses = ClassificationTask.losses

    def noted(task: Any, student: Any, teacher: Any, batch: Any) -> Any:
        if not torch.is_grad_enabled():  # counts FLOPs before the first step
            return losses(task, student, teacher, batch)
        if notes is not None:
            with notes.open("a") as file:
                file.write(json.dumps([batch.step, ranks.rank, batch.ids.tolist()]) + "\n")
        if batch.step == stop_at and ranks.rank == ranks.world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(task, student, teacher, batch)

    ClassificationTask.losses = noted
    try:
        return train_arm(recipe, arm, options(out), ranks)
    finally:
        ClassificationTask.losses = losses


def seen_ids(notes: Path) -> dict[int, list[int]]:
    """Return the ids of each step's batch: micro-batches in order, and ranks in order within each."""
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    by_rank: dict[int, dict[int, list[list[int]]]] = {}
    for step, rank, ids in lines:
        by_rank.setdefault(step, {}).setdefault(rank, []).append(ids)
    return {
        step: [
            example
            for micro in zip(*(parts[rank] for rank in sorted(parts)), strict=True)
            for example in chain.from_iterable(micro)
        ]
        for step, parts in sorted(by_rank.items())
    }


def rows(path: Path, kind: type[Row]) -> list[Any]:
    return [row for row in read_run(path).rows if isinstance(row, kind)]


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


def train_and_score(ranks: Ranks, teacher: Path, out: Path) -> Any:
    """Train the distilled arm with two micro-batches per rank and step, and score its model."""
    with process_group(ranks, torch.device("cpu")):
        path = arm_on(ranks, recipe(teacher, accumulate=2), "w2s", out, out / "notes")
        return score(path, ranks)


def score(path: Path, ranks: Ranks) -> Any:
    return score_model(ScoreOptions(path, device="cpu"), ranks).evaluation


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The distilled run of a single process with four micro-batches per step."""
    out = tmp_path_factory.mktemp("one")
    before = catalog.CLASSIFIERS["small_cnn_strong"]
    try:
        return arm_on(Ranks(), recipe(teacher, accumulate=4), "w2s", out, out / "notes")
    finally:
        catalog.CLASSIFIERS["small_cnn_strong"] = before


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> tuple[Path, list[Any]]:
    """The same run with two ranks and two micro-batches each, and the evaluation of each rank."""
    out = tmp_path_factory.mktemp("two")
    evaluations = values(run_ranks(train_and_score, teacher, out))
    return RunName("w2s", 0).within(out), evaluations


@pytest.fixture
def two(two_ranks: tuple[Path, list[Any]]) -> Path:
    return two_ranks[0]


def test_two_ranks_learn_the_same_as_one_process(one: Path, two: Path) -> None:
    ours, theirs = rows(two, StepRow), rows(one, StepRow)
    assert [row.step for row in ours] == list(range(1, STEPS + 1))
    assert len({row.loss for row in ours}) == STEPS
    for a, b in zip(ours, theirs, strict=True):
        assert (a.step, a.epoch, a.examples, a.lr, a.lambda_) == (b.step, b.epoch, b.examples, b.lr, b.lambda_)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.parts == pytest.approx(b.parts, rel=1e-4)
    weights, expected = load_weights(two).state, load_weights(one).state
    learned = [name for name in weights if "running" not in name and "tracked" not in name]
    assert len(learned) == 10
    for name in learned:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=1e-4)


def test_the_same_batches_in_the_same_order(one: Path, two: Path) -> None:
    ours, theirs = seen_ids(two.parents[1] / "notes"), seen_ids(one.parents[1] / "notes")
    assert ours == theirs
    assert [len(ids) for ids in ours.values()] == [32] * STEPS


def test_the_switch_happens_at_the_same_step(one: Path, two: Path) -> None:
    for path in (one, two):
        events = [row for row in rows(path, EventRow) if row.name == "distillation_off"]
        assert [(row.step, row.details["reason"]) for row in events] == [(6, "surpassed")]
        assert [row.lambda_ > 0 for row in rows(path, StepRow)] == [True] * 6 + [False] * 6
        assert ["distill.kl" in row.parts for row in rows(path, StepRow)] == [True] * 6 + [False] * 6


def test_one_set_of_files(one: Path, two: Path) -> None:
    assert files(two) == files(one)
    assert [row.step for row in rows(two, EvalRow)] == [3, 6, 9, 12]
    assert [row.name for row in rows(two, EventRow)] == ["teacher", "distillation_off", "finished"]
    assert read_run(two).status["state"] == "finished"
    assert read_run(two).environment["ranks"] == 2


def test_every_example_is_scored_once(two_ranks: tuple[Path, list[Any]]) -> None:
    path, evaluations = two_ranks
    alone = score(path, Ranks())
    assert sum(row["examples"] for row in alone.tables["classes"]) == EVALUATION_EXAMPLES
    for evaluation in evaluations:
        assert evaluation.tables == alone.tables
        assert evaluation.metrics == pytest.approx(alone.metrics, rel=1e-6)
    assert rows(path, EvalRow)[-1].metrics == pytest.approx(alone.metrics, rel=1e-6)


def large(**train: Any) -> Recipe:
    """Return a baseline recipe with streaming, mixing, repeated augmentation and progressive sizes."""
    values = recipe(steps=3, **train).model_dump(mode="json")
    values["data"] |= {
        **{"feed": "streaming", "workers": 0, "mixup": 0.4, "cutmix": 1.0, "repeats": 2, "eval_resize": 18},
        **{"augment": ["random_resized_crop", "flip", "trivial_augment"], "progressive": {"from_px": 8}},
    }
    return validate_recipe(values, "test")


def train_and_predict(ranks: Ranks, out: Path) -> str:
    with process_group(ranks, torch.device("cpu")):
        path = arm_on(ranks, large(), "baseline", out)
        return predict(path, ranks, out.parent / f"{ranks.rank}.csv")


def predict(path: Path, ranks: Ranks, file: Path) -> str:
    evaluation = score_model(ScoreOptions(path, device="cpu", outputs=("predictions",)), ranks).evaluation
    evaluation.files["predictions"](file)
    return file.read_text()


def test_streams_are_shared_by_ranks(tmp_path: Path) -> None:
    """Training equals that of one process, and predictions have the order of the evaluation set."""
    by_rank = values(run_ranks(train_and_predict, tmp_path / "two"))
    two = RunName("baseline", 0).within(tmp_path / "two")
    one = arm_on(Ranks(), large(accumulate=2), "baseline", tmp_path / "one")
    losses = [[row.loss for row in rows(path, StepRow)] for path in (two, one)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    alone = [line.split(",")[:4] for line in predict(two, Ranks(), tmp_path / "alone.csv").splitlines()]
    assert [example for example, *_ in alone[1:]] == [str(index) for index in range(EVALUATION_EXAMPLES)]
    for text in by_rank:
        assert [line.split(",")[:4] for line in text.splitlines()] == alone


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of two ranks without interruption."""
    out = tmp_path_factory.mktemp("undisturbed")
    return values(run_ranks(arm_on, recipe(log_every=3), "baseline", out, out / "notes"))[0]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """The same baseline, where rank 1 got a SIGTERM in step 5."""
    out = tmp_path_factory.mktemp("stopped")
    return out, run_ranks(arm_on, recipe(log_every=3), "baseline", out, out / "notes", 4)


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(stopped: tuple[Path, list[Outcome]]) -> None:
    out, outcomes = stopped
    for outcome in outcomes:
        assert isinstance(outcome.error, Stopped)
        assert str(outcome.error).startswith("stopped by SIGTERM at step 6 of 12; a checkpoint was written")
    status = read_run(RunName("baseline", 0).within(out)).status
    assert (status["state"], status["step"]) == ("stopped", 6)
    assert "SIGTERM" in status["reason"]


def test_two_ranks_resume_bit_for_bit(undisturbed: Path, stopped: tuple[Path, list[Outcome]], tmp_path: Path) -> None:
    shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
    path = values(run_ranks(arm_on, recipe(log_every=3), "baseline", tmp_path, tmp_path / "notes"))[0]
    weights, expected = load_weights(path).state, load_weights(undisturbed).state
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert seen_ids(tmp_path / "notes") == seen_ids(undisturbed.parents[1] / "notes")
    assert [row.step for row in rows(path, StepRow)] == [3, 6, 9, 12]
    assert [row.metrics for row in rows(path, EvalRow)] == [row.metrics for row in rows(undisturbed, EvalRow)]
    assert [(row.step, row.name) for row in rows(path, EventRow)] == [(6, "resumed"), (12, "finished")]


def test_one_rank_resumes_with_the_same_data(
    undisturbed: Path, stopped: tuple[Path, list[Outcome]], tmp_path: Path
) -> None:
    shutil.copytree(stopped[0], tmp_path, dirs_exist_ok=True)
    path = arm_on(Ranks(), recipe(log_every=3), "baseline", tmp_path, tmp_path / "notes of one")
    whole = seen_ids(undisturbed.parents[1] / "notes")
    assert seen_ids(tmp_path / "notes of one") == {step: ids for step, ids in whole.items() if step >= 6}
    assert read_run(path).status["state"] == "finished"
    assert [row.step for row in rows(path, StepRow)] == [3, 6, 9, 12]


def break_rows(ranks: Ranks, out: Path, kind: type[Exception]) -> None:
    """Train until rank 0 fails to write the row of step 4."""
    append = RunDir.append

    def full(self: RunDir, row: Row) -> None:
        if row.step == 4:
            raise kind("no space left")
        append(self, row)

    RunDir.append = full
    arm_on(ranks, recipe(), "baseline", out)


def test_a_full_disk_of_rank_0_ends_both_with_its_reason(tmp_path: Path) -> None:
    outcomes = run_ranks(break_rows, tmp_path, OutputError, timeout_s=300)
    assert [(type(each.error), str(each.error)) for each in outcomes] == [(OutputError, "no space left")] * 2
    status = read_run(RunName("baseline", 0).within(tmp_path)).status
    assert (status["state"], status["step"], status["reason"]) == ("failed", 3, "no space left")


def test_a_bug_in_rank_0_ends_both(tmp_path: Path) -> None:
    outcomes = run_ranks(break_rows, tmp_path, ZeroDivisionError, timeout_s=300)
    assert isinstance(outcomes[0].error, ZeroDivisionError)
    assert isinstance(outcomes[1].error, RuntimeError)
    assert [each.exit_code for each in outcomes] == [0, 0]
    assert read_run(RunName("baseline", 0).within(tmp_path)).status["state"] == "failed"


def miss_data_on_rank_1(ranks: Ranks, out: Path) -> None:
    set_up = arm.set_up
    if ranks.rank == 1:
        arm.set_up = lambda *_, **__: missing()
    try:
        arm_on(ranks, recipe(), "baseline", out)
    finally:
        arm.set_up = set_up


def missing() -> None:
    raise DataError("no images on this machine")


def test_data_missing_on_one_rank_is_reported_by_all(tmp_path: Path) -> None:
    outcomes = run_ranks(miss_data_on_rank_1, tmp_path, timeout_s=300)
    assert [(type(each.error), str(each.error)) for each in outcomes] == [(DataError, "no images on this machine")] * 2


def test_a_batch_that_does_not_divide_among_ranks_is_refused(tmp_path: Path) -> None:
    outcomes = run_ranks(arm_on, recipe(batch_size=33), "baseline", tmp_path, timeout_s=300)
    for outcome in outcomes:
        assert isinstance(outcome.error, UsageError)
        assert "train.batch_size: 33" in str(outcome.error)
