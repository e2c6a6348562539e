from pathlib import Path

import pytest

from w2skd.records.names import RunName

NAMES = {
    "teacher": RunName("teacher", None),
    "teacher/seed3": RunName("teacher", 3),
    "baseline/seed7": RunName("baseline", 7),
    "grown+w2s/length0.35/seed0": RunName("grown+w2s", 0, 0.35),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_the_path_of_its_run(text: str, tmp_path: Path) -> None:
    assert str(NAMES[text]) == text
    assert RunName.parse(Path(text)) == NAMES[text]
    assert NAMES[text].within(tmp_path) == tmp_path / text


@pytest.mark.parametrize(
    "text",
    ["baseline", "w2s/seed1_old", "w2s/seed01", "w2s/seeds", "w2s/length1/seed0", "w2s/length0.5", "w2s/lengthy/seed0"],
)
def test_other_folders_are_no_runs(text: str) -> None:
    assert RunName.parse(Path(text)) is None
