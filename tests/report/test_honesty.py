"""Caveats of a comparison."""

from pathlib import Path

import pytest
from known import build_report
from synthetic_runs import FAST, FID_FAST, FID_SLOW, GENERATED, SLOW, MakeRun, mentions, threshold, two_arms

from w2skd.records.rows import EventRow


def test_a_teacher_from_outside_has_an_unknown_cost(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    report = build_report(experiment)
    assert report.teacher is not None
    assert not report.teacher.in_experiment
    assert threshold(report, "teacher").arms["w2s"].speedup_with_teacher == {"seconds": {}, "flops": {}}
    assert mentions(report, "the teacher's training cost is not in this report")


def test_a_clean_experiment_of_three_seeds_has_nothing_to_warn_of(make_run: MakeRun, experiment: Path) -> None:
    make_run("teacher", 0, [0.5, 0.65])
    two_arms(make_run, seeds=3)
    assert build_report(experiment).warnings == ()


def test_warnings_about_recipes(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, overrides=["data.root=here", "train.optimizer.lr=0.1"])
    make_run("w2s", 0, FAST, overrides=["data.root=there", "train.optimizer.lr=0.2"])
    report = build_report(experiment)
    assert mentions(report, "training settings differ", "train.optimizer.lr is 0.1 in baseline/seed0, 0.2 in w2s/seed0")
    assert not mentions(report, "data.root")


def test_warnings_about_distillation(make_run: MakeRun, experiment: Path) -> None:
    make_run("w2s", 0, FAST, overrides=["distill.weight=1.0"], teacher=0.6)
    make_run("w2s", 1, FAST, overrides=["distill.weight=2.0"], teacher=0.7)
    report = build_report(experiment)
    assert mentions(report, "distillation settings differ", "distill.weight is 1.0 in w2s/seed0, 2.0 in w2s/seed1")
    assert mentions(report, "teacher levels differ", "60.0% (w2s/seed0), 70.0% (w2s/seed1)")
    assert threshold(report, "teacher").value == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("device", "cuda:0", "seconds are not comparable"),
        ("threads", 2, "seconds are not comparable"),
        ("ranks", 4, "seconds are not comparable"),
        ("w2skd", "0.2.0", "software differs"),
    ],
)
def test_warnings_about_environments(make_run: MakeRun, experiment: Path, key: str, value: object, words: str) -> None:
    make_run("baseline", 0, SLOW)
    make_run("w2s", 0, FAST, environment={key: value})
    report = build_report(experiment)
    assert mentions(report, words, f"{key} is ", f"{value} in w2s/seed0")


def test_an_environment_that_lacks_keys_is_no_difference(make_run: MakeRun, experiment: Path) -> None:
    path = make_run("baseline", 0, SLOW)
    (path / "environment.json").write_text("{}")
    make_run("w2s", 0, FAST)
    report = build_report(experiment)
    assert not mentions(report, "seconds are not comparable")
    assert threshold(report, "teacher").arms["w2s"].speedup["flops"] == {}
    assert threshold(report, "teacher").arms["w2s"].speedup["epochs"] == {0: 2.0}


def test_warnings_about_seeds_and_states(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    make_run("baseline", 1, SLOW, state="stopped")
    report = build_report(experiment)
    assert mentions(report, "a single seed: the spread between seeds is unknown")
    assert mentions(report, "seed 1 in the baseline arm only")
    assert mentions(report, "baseline/seed1 is not finished: stopped at step 100 of 140")
    assert threshold(report, "teacher").arms["w2s"].seeds == (0,)
    make_run("w2s", 1, FAST)
    assert mentions(build_report(experiment), "2 seeds only")


def test_warnings_about_incidents(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, extra=[EventRow(50, "resumed", {"lost_steps": 7}), EventRow(60, "resumed", {})])
    make_run("w2s", 0, FAST, extra=[EventRow(20, "non_finite", {"steps": [17, 18], "ids": [1, 2]})])
    report = build_report(experiment)
    assert mentions(report, "baseline/seed0 was resumed 2 times and repeated 7 steps")
    assert mentions(report, "w2s/seed0 had a non-finite loss or gradient at 2 steps")


def test_warnings_about_first_weights(make_run: MakeRun, experiment: Path) -> None:
    make_run("baseline", 0, SLOW, environment={"init_from": None})
    make_run("w2s", 0, FAST, environment={"init_from": {"checkpoint": "old.safetensors", "fingerprint": "aa"}})
    assert mentions(build_report(experiment), "initial weights differ", "w2s/seed0")


def test_a_teacher_trained_on_other_data_is_reported(make_run: MakeRun, experiment: Path) -> None:
    def row(data: str | None) -> EventRow:
        return EventRow(0, "teacher", {"metrics": {"top1": 0.65}, "data_fingerprint": data})

    make_run("w2s", 0, FAST, extra=[row("f00d")])
    assert not mentions(build_report(experiment), "was trained on other data")
    make_run("w2s", 1, FAST, extra=[row("beef")])
    assert mentions(build_report(experiment), "teacher of w2s/seed1", "was trained on other data")
    make_run("w2s", 2, FAST, extra=[row(None)])
    assert mentions(build_report(experiment), "the training data of w2s/seed2's teacher are not recorded")


def test_the_teachers_own_data_count(make_run: MakeRun, experiment: Path) -> None:
    two_arms(make_run)
    make_run("teacher", 0, SLOW, environment={"data_fingerprint": "beef"})
    assert mentions(build_report(experiment), "training data differ", "beef in teacher")


def test_a_run_resumed_on_another_machine_is_reported(make_run: MakeRun, experiment: Path) -> None:
    moved = EventRow(20, "resumed", {"lost_steps": 3, "changed": {"threads": 8, "total_steps": 7}})
    make_run("w2s", 0, FAST, extra=[moved])
    assert mentions(build_report(experiment), "w2s/seed0 was resumed with different threads:")


def test_a_run_resumed_on_other_data_is_reported(make_run: MakeRun, experiment: Path) -> None:
    changed = EventRow(20, "resumed", {"lost_steps": 0, "changed": {"data_identity": {"training": {"images": 7}}}})
    make_run("w2s", 0, FAST, extra=[changed])
    assert mentions(build_report(experiment), "w2s/seed0 was resumed on changed data")


def test_warnings_about_the_noising_process_and_the_loss(make_run: MakeRun, experiment: Path) -> None:
    given = {"recipe": GENERATED, "metric": "fid", "thresholds": "[60.0]"}
    make_run("baseline", 0, FID_SLOW, **given, overrides=["diffusion.prediction=v"])
    make_run("w2s", 0, FID_FAST, **given, overrides=["loss.timestep_weighting=min_snr"])
    report = build_report(experiment)
    assert mentions(
        report, "training settings differ", "diffusion.prediction is v in baseline/seed0, epsilon in w2s/seed0"
    )
    assert mentions(
        report, "training settings differ", "loss.timestep_weighting is uniform in baseline/seed0, min_snr in"
    )
