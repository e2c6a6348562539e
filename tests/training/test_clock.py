import time

import pytest

from w2skd.records.rows import SEGMENTS, TRAINING_SEGMENTS, training_seconds
from w2skd.training.clock import Clock


class Time:
    """A time source that tests advance by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def __iadd__(self, seconds: float) -> "Time":
        self.now += seconds
        return self


def test_segments_exclude_each_other() -> None:
    now = Time()
    clock = Clock(now=now)
    with clock.segment("train"):
        now += 1.0
        with clock.segment("data"):
            now += 2.0
            with clock.segment("evaluate"):
                now += 4.0
            now += 8.0
        now += 16.0
    assert clock.read() == {
        "train": 17.0,
        "teacher": 0.0,
        "data": 10.0,
        "evaluate": 4.0,
        "checkpoint": 0.0,
        "compile": 0.0,
    }


def test_time_outside_of_segments_is_not_counted() -> None:
    now = Time()
    clock = Clock(now=now)
    now += 5.0
    with clock.segment("train"):
        now += 1.0
    now += 5.0
    assert sum(clock.read().values()) == 1.0


def test_reading_does_not_disturb_the_running_segment() -> None:
    now = Time()
    clock = Clock(now=now)
    with clock.segment("train"):
        now += 1.0
        assert clock.read()["train"] == 1.0
        assert clock.read()["train"] == 1.0
        now += 2.0
    assert clock.read()["train"] == 3.0


def test_a_nested_segment_of_the_same_name_counts_once() -> None:
    now = Time()
    clock = Clock(now=now)
    with clock.segment("train"), clock.segment("train"):
        now += 1.0
    assert clock.read()["train"] == 1.0


def test_an_error_ends_its_segments() -> None:
    now = Time()
    clock = Clock(now=now)

    def fail() -> None:
        with clock.segment("train"), clock.segment("data"):
            now.now += 1.0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    now += 5.0
    assert clock.read()["data"] == 1.0
    assert clock.read()["train"] == 0.0


def test_it_continues_from_a_checkpoint() -> None:
    now = Time()
    clock = Clock({"train": 10.0, "evaluate": 5.0}, now=now)
    with clock.segment("train"):
        now += 1.0
    assert clock.read()["train"] == 11.0
    assert clock.read()["evaluate"] == 5.0
    assert Clock(clock.read(), now=now).read() == clock.read()


def test_moving_time_keeps_the_sum() -> None:
    now = Time()
    clock = Clock(now=now)
    with clock.segment("train"):
        now += 10.0
    clock.move("train", "teacher", 3.0)
    assert clock.read()["train"] == 7.0
    assert clock.read()["teacher"] == 3.0
    assert sum(clock.read().values()) == 10.0


def test_a_reading_is_a_copy_of_all_segments_in_microseconds() -> None:
    now = Time()
    clock = Clock(now=now)
    with clock.segment("data"):
        now += 0.1234567891
    reading = clock.read()
    assert tuple(reading) == SEGMENTS
    assert reading["data"] == 0.123457
    reading["data"] = 0.0
    assert clock.read()["data"] == 0.123457


def test_training_seconds_exclude_evaluation_and_checkpoints() -> None:
    reading = {name: 2.0**power for power, name in enumerate(SEGMENTS)}
    assert TRAINING_SEGMENTS == ("train", "teacher", "data")
    assert training_seconds(reading) == 1.0 + 2.0 + 4.0
    assert training_seconds({}) == 0.0


def test_it_measures_seconds() -> None:
    clock = Clock()
    started = time.perf_counter()
    with clock.segment("train"):
        time.sleep(0.02)
    assert 0.02 <= clock.read()["train"] <= time.perf_counter() - started + 1e-6
