"""The snippets, links and tables of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from known import load_recipe
from torch import nn
from torch.nn.functional import cross_entropy

from w2skd.method.schedule import DistillSchedule

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return found


def test_the_recipe_of_your_own_loads_in_about_ten_lines(tmp_path: Path) -> None:
    recipe = tmp_path / "flowers.yaml"
    recipe.write_text(block("yaml"))
    assert load_recipe(str(recipe)).name == "flowers"
    assert len(block("yaml").splitlines()) <= 13


def test_the_method_in_a_loop_of_your_own_learns_and_switches_off() -> None:
    torch.manual_seed(0)
    centres = torch.eye(4) * 3
    labels = torch.arange(4).repeat(64)
    images = centres[labels] + torch.randn(256, 4)

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model(images).argmax(1) == labels).float().mean().item()

    weak = nn.Linear(4, 4)
    nn.init.normal_(weak.weight, std=0.1)
    student = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 4))
    scope = {
        "weak_model": weak,
        "student": student,
        "optimizer": torch.optim.SGD(student.parameters(), 0.1),
        "batches": [(images, labels)] * 220,
        "accuracy": accuracy,
        "cross_entropy": cross_entropy,
    }
    before = {name: value.clone() for name, value in weak.state_dict().items()}
    exec(block("python"), scope)
    schedule = scope["schedule"]
    assert isinstance(schedule, DistillSchedule)
    assert schedule.switched_off is not None
    assert schedule.switched_off.reason == "surpassed"
    assert accuracy(student) > 0.9
    assert all(torch.equal(value, weak.state_dict()[name]) for name, value in before.items())


def test_the_layout_names_every_folder_of_the_package() -> None:
    named = set(re.findall(r"[├└]── ([a-z_]+(?:\.py)?)", block("text")))
    package = ROOT / "w2skd"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == folders | modules


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 200
    for page in (ROOT / "README.md", ROOT / "docs" / "guide.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {title.lower().replace(" ", "-") for title in titles}, target


def test_the_results_are_what_the_records_say() -> None:
    script = ROOT / "docs" / "results" / "summarise.py"
    command, environment = [sys.executable, str(script), "--check"], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "run: python docs/results/summarise.py"
