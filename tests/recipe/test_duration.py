import pytest

from w2skd.recipe.duration import Duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5ep", Duration(5, "ep")),
        ("0.5ep", Duration(0.5, "ep")),
        ("5 eps", Duration(5, "ep")),
        (" 2000step ", Duration(2000, "step")),
        ("2000steps", Duration(2000, "step")),
        ("0.25run", Duration(0.25, "run")),
        ("1run", Duration(1, "run")),
        ("0ep", Duration(0, "ep")),
    ],
)
def test_a_duration_is_parsed(text: str, expected: Duration) -> None:
    assert Duration.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "ep", "-1ep", "5epochs", "1e3step", "5 minutes", "nanep", "infrun", ".5ep", "5ep 3step"]
)
def test_other_texts_are_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write epochs as 5ep"):
        Duration.parse(text)


def test_the_number_of_steps_is_an_integer() -> None:
    with pytest.raises(ValueError, match=r"'0.5step': the number of steps must be an integer"):
        Duration.parse("0.5step")


def test_a_share_is_at_most_the_run() -> None:
    with pytest.raises(ValueError, match=r"'1.01run': a share of the run is at most 1run"):
        Duration.parse("1.01run")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("2ep", 200),
        ("0.5ep", 50),
        ("0.125ep", 13),  # 12.5 rounds up
        ("0.124ep", 12),
        ("7step", 7),
        ("0.25run", 300),
        ("1run", 1200),
        ("0run", 0),
        ("0.0004run", 0),
        ("2000step", 2000),
    ],
)
def test_in_steps(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(steps_per_epoch=100, total_steps=1200) == steps


@pytest.mark.parametrize(
    "duration",
    [
        Duration(5, "ep"),
        Duration(0.25, "run"),
        Duration(0.1 + 0.2, "run"),
        Duration(1 / 3, "run"),
        Duration(1e-7, "run"),
        Duration(123456.75, "ep"),
        Duration(1234567, "step"),
        Duration(12345678901, "step"),
        Duration(0, "step"),
    ],
)
def test_text_and_back(duration: Duration) -> None:
    assert Duration.parse(str(duration)) == duration


def test_text_is_short() -> None:
    assert [str(Duration.parse(text)) for text in ("5.0ep", "0.50ep", "2000step")] == ["5ep", "0.5ep", "2000step"]
