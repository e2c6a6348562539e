"""The speed-up at equal final quality in words."""

from w2skd.report.equal_quality_contract import AtLength, EqualQuality, Estimate, Interval, Line
from w2skd.report.equal_quality_text import line_sentence, sentence


def at(
    there: Estimate,
    cost: float | None = None,
    seeds: int = 12,
    teachers: int | None = None,
    sharers: tuple[int, ...] = (),
) -> AtLength:
    return AtLength(
        length=8.0,
        end=0.7,
        reference_length=there,
        speedup=there.scaled(1 / 8),
        with_teacher=None if cost is None else there.scaled(1 / (8 + cost)),
        shared={str(count): there.scaled(1 / (8 + (cost or 0) / count)) for count in sharers},
        seeds=tuple(range(seeds)),
        teachers=teachers,
    )


def comparison(primary: AtLength | None, line: Line | None = None, unit: str = "epoch") -> EqualQuality:
    lengths = () if primary is None else (primary,)
    return EqualQuality("plain", "grow", unit, 0.95, lengths, primary, line)


def test_a_number_with_interval_and_the_cost_of_the_teacher() -> None:
    found = at(Estimate(18.3, interval=Interval(15.2, 22.4)), 5.0, teachers=3, sharers=(4,))
    assert sentence(comparison(found)) == (
        "grow after 8 epochs ends as well as plain after 18.3: 2.29x (95% interval 1.90x to 2.80x), "
        "1.41x including teacher training, 1.98x with the teacher shared by 4; 12 seeds, 3 teachers"
    )


def test_bounds_are_no_numbers() -> None:
    better = at(Estimate(None, more_than=32.0, interval=Interval(28.0, None)), 8.0)
    assert sentence(comparison(better)) == (
        "grow after 8 epochs ends better than plain after 32, the longest compared: > 4.00x (95% interval > 3.50x), "
        "> 2.00x including teacher training; 12 seeds"
    )
    worse = at(Estimate(None, less_than=4.0, interval=Interval(None, 4.8)))
    assert sentence(comparison(worse)) == (
        "grow after 8 epochs ends worse than plain after 4, the shortest compared: < 0.50x (95% interval < 0.60x); "
        "12 seeds"
    )


def test_one_seed_has_no_interval() -> None:
    text = sentence(comparison(at(Estimate(16.0), seeds=1)))
    assert text == "grow after 8 epochs ends as well as plain after 16: 2.00x; one seed"


def test_an_interval_open_at_both_ends_has_no_limits() -> None:
    text = sentence(comparison(at(Estimate(16.0, interval=Interval(None, None)), seeds=3, teachers=1)))
    assert text == (
        "grow after 8 epochs ends as well as plain after 16: 2.00x (95% interval unbounded); 3 seeds, one teacher"
    )


def test_steps_are_counted() -> None:
    text = sentence(comparison(at(Estimate(12_345.4)), unit="step"))
    assert text.startswith("grow after 8 steps ends as well as plain after 12,345: ")


def test_nothing_to_compare() -> None:
    assert "no length of grow can be compared with plain" in sentence(comparison(None))


def test_the_line_in_words() -> None:
    head, rate = Estimate(9.14, interval=Interval(7.0, 11.2)), Estimate(1.05, interval=Interval(0.9, 1.2))
    line = Line(head, rate, None, {}, (4.0, 8.0, 12.0), 0, (0, 1, 2))
    assert line_sentence(comparison(None, line)) == (
        "to end as well, plain needs 1.05 (0.9 to 1.2) epochs for each epoch of grow, plus 9.14 (7 to 11.2) epochs"
    )
    assert line_sentence(comparison(None)) is None
    bare = Line(Estimate(9.14), Estimate(1.05), None, {}, (4.0, 8.0), 0, (0,))
    assert line_sentence(comparison(None, bare)) == (
        "to end as well, plain needs 1.05 epochs for each epoch of grow, plus 9.14 epochs"
    )
