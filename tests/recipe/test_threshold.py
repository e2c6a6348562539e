import pytest

from w2skd.recipe.threshold import Threshold


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.9, Threshold("0.9", "number", 0.9)),
        (60, Threshold("60", "number", 60.0)),
        (0.123456789, Threshold("0.123456789", "number", 0.123456789)),
        (1234567, Threshold("1234567", "number", 1234567.0)),
        ("teacher", Threshold("teacher", "teacher", 1.0)),
        ("0.98*baseline", Threshold("0.98*baseline", "baseline", 0.98)),
        (" 0.98 * baseline ", Threshold("0.98*baseline", "baseline", 0.98)),
        ("0.95*teacher", Threshold("0.95*teacher", "teacher", 0.95)),
        ("1*baseline", Threshold("1*baseline", "baseline", 1.0)),
        ("1.05*baseline", Threshold("1.05*baseline", "baseline", 1.05)),
    ],
)
def test_a_threshold_is_parsed(value: float | str, expected: Threshold) -> None:
    assert Threshold.parse(value) == expected


@pytest.mark.parametrize(
    "value",
    ["0.9", "baseline", "teacher*0.9", "0.9*", "0.9*7", "-1*baseline", "90%", "", "*teacher", True, None, [0.9], {}],
)
def test_other_values_are_refused_with_examples(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not a threshold: write a number, teacher, 0\.98"):
        Threshold.parse(value)  # type: ignore[arg-type] (recipes can contain any type)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="is not a threshold"):
        Threshold.parse(value)


@pytest.mark.parametrize("value", [0.9, 0.123456789, 60, "teacher", "0.98*baseline"])
def test_a_name_parses_to_its_threshold(value: float | str) -> None:
    threshold = Threshold.parse(value)
    again = Threshold.parse(float(threshold.name) if threshold.of == "number" else threshold.name)
    assert again == threshold
