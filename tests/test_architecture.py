"""The rules of the house: who may import whom, what stays free of torch, what the training loop may know."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "w2skd"

FLOORS = {
    "": 0,  # w2skd/__init__ itself, which imports nothing
    "errors": 0,
    "records": 1,
    "clock": 1,
    "distributed": 1,
    "precision": 1,
    "fit": 1,
    "files": 1,
    "fetch": 1,
    "unpickle": 1,
    "signals": 1,
    "recipe": 1,
    "rundir": 2,
    "schedule": 2,
    "checkpoint": 2,
    "distill": 2,
    "teacher": 2,
    "finite": 2,
    "optimizer": 2,
    "network": 2,
    "predictions": 2,
    "pictures": 3,
    "pretrained": 3,
    "window": 2,
    "device": 2,
    "data": 2,
    "models": 2,
    "metrics": 2,
    "report": 4,
    "tasks.base": 3,
    "tasks": 4,
    "engine": 4,
    "tasks.catalog": 5,
    "progress": 5,
    "run": 6,
    "score": 6,
    "compare": 7,
    "cli": 8,
    "__main__": 9,
}
"""Module or folder -> floor; a module's own entry goes before its folder's."""

TORCH_FREE = (
    *("errors", "records", "clock", "files", "signals", "recipe"),
    *("rundir", "schedule", "report", "progress", "cli"),
)
OF_DIFFUSION = ("diffusers", "torch_fidelity")
HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "PIL", "safetensors", *OF_DIFFUSION)

REPORT_MAY_IMPORT = ("errors", "records", "clock", "files", "recipe", "rundir", "report")


class Import(NamedTuple):
    """One import, resolved.

    Attributes:
        target: dotted name of a module, relative to w2skd where it is one of ours ("" is w2skd itself), else as it is.
        ours: whether it is in w2skd.
        deferred: it runs when a function is called, or for type checkers only, not when the module is loaded.
    """

    line: int
    target: str
    ours: bool
    deferred: bool


def sources() -> dict[str, str]:
    """Name relative to w2skd -> source, of every module; packages by their own name."""
    return {_name(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def _name(path: Path) -> str:
    return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


def imports(module: str, source: str, modules: Mapping[str, str]) -> Iterator[Import]:
    """Every import of a module: absolute, relative, in functions, under TYPE_CHECKING, by ``import_module``."""
    is_package = any(name.startswith(f"{module}.") for name in modules) or module == ""

    def resolve(node: ast.AST) -> list[str]:
        match node:
            case ast.Import(names=names):
                return [alias.name for alias in names]
            case ast.ImportFrom(module=name, names=names, level=level):
                parts = ["w2skd", *module.split(".")] if module else ["w2skd"]
                up = level - 1 if is_package else level
                base = [*parts[: len(parts) - up], *([name] if name else [])] if level else [name or ""]
                return [".".join([*base, alias.name]) for alias in names]
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                return [name] if called in ("import_module", "__import__") else []
            case _:
                return []

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for name in resolve(node):
            line = getattr(node, "lineno", 0)
            if name == "w2skd" or name.startswith("w2skd."):
                yield Import(line, _nearest(name.removeprefix("w2skd").removeprefix("."), modules), True, deferred)
            else:
                yield Import(line, name, False, deferred)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(source), False)


def _nearest(name: str, modules: Mapping[str, str]) -> str:
    """The module that ``w2skd.<name>`` is, or has as an attribute."""
    while name and name not in modules and "." in name:
        parent = name.rpartition(".")[0]
        if parent in modules:
            return parent
        name = parent
    return name if name in modules or _looks_like_a_module(name) else ""


def _looks_like_a_module(name: str) -> bool:
    return name != "" and not name.startswith("__") and name.islower()


def floor(module: str) -> int | None:
    """A module's floor, or None when nobody has given it one."""
    while module not in FLOORS and "." in module:
        module = module.rpartition(".")[0]
    return FLOORS.get(module)


def wrong_arrows(modules: Mapping[str, str]) -> list[str]:
    """Imports that go up or sideways, and modules that have no floor."""
    wrong = [f"w2skd.{module} has no floor in FLOORS" for module in modules if floor(module) is None]
    for module, source in modules.items():
        for found in imports(module, source, modules):
            if found.ours and not _may_import(module, found):
                wrong.append(_arrow(module, found.target, found.line))
    return wrong


def _arrow(module: str, target: str, line: int) -> str:
    return f"{module or '__init__'} (floor {floor(module)}) -> {target} (floor {floor(target)}), line {line}"


def _may_import(module: str, found: Import) -> bool:
    if module == "":
        return found.deferred
    here, there = floor(module), floor(found.target)
    if here is None or there is None:
        return False
    folder = module.partition(".")[0]
    own_folder = "." in module and found.target.partition(".")[0] == folder
    return found.target == "" or there < here or (own_folder and there <= here)


def heavy_imports(
    modules: Mapping[str, str], starts: Sequence[str] = TORCH_FREE, packages: Sequence[str] = HEAVY
) -> list[str]:
    """Packages that come with a module, or one in a folder, when it is loaded, also through what it imports itself."""
    heavy = []
    for start in (module for module in modules if module.partition(".")[0] in starts):
        seen, waiting = {start}, [start]
        while waiting:
            module = waiting.pop()
            for found in imports(module, modules[module], modules):
                if found.deferred:
                    continue
                if not found.ours and found.target.partition(".")[0] in packages:
                    heavy.append(f"{start} loads {found.target} ({module}, line {found.line})")
                if found.ours and found.target in modules and found.target not in seen:
                    seen.add(found.target)
                    waiting.append(found.target)
    return heavy


def test_imports_go_down() -> None:
    assert wrong_arrows(sources()) == []


def test_what_must_start_fast_loads_nothing_heavy() -> None:
    assert heavy_imports(sources()) == []


def test_other_tasks_do_not_wait_for_what_diffusion_needs() -> None:
    assert heavy_imports(sources(), ("run", "score", "compare"), OF_DIFFUSION) == []
    assert heavy_imports(sources(), ("tasks",), OF_DIFFUSION) != []


def test_reports_read_run_directories_and_nothing_else() -> None:
    modules = sources()
    wrong = [
        f"{module} -> {found.target}"
        for module in modules
        if module.partition(".")[0] == "report"
        for found in imports(module, modules[module], modules)
        if (found.ours and found.target.partition(".")[0] not in REPORT_MAY_IMPORT) or found.target.startswith("torch")
    ]
    assert wrong == []


def test_the_command_line_starts_without_torch_and_matplotlib() -> None:
    code = "import sys, w2skd.cli.main; print(sorted({'torch', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_engine_is_short_and_knows_no_task() -> None:
    engine = (PACKAGE / "engine.py").read_text(encoding="utf-8")
    assert len(engine.splitlines()) < 300
    words = ("classif", "detect", "diffusion", "label", "logit", "box", "noise", "denois", "sampl", "fid", "unet")
    assert [word for word in words if word in engine.lower()] == []


def test_no_room_is_for_things_without_a_name() -> None:
    names = {part for module in sources() for part in module.split(".")}
    assert names & {"utils", "util", "helpers", "helper", "common", "misc"} == set()


def test_packages_have_empty_init_files() -> None:
    filled = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE and path.stat().st_size]
    assert filled == []


GOOD = {
    "": "",
    "errors": "",
    "records": "from w2skd.errors import suggest",
    "recipe": "",
    "recipe.names": "",
    "recipe.load": "from w2skd.recipe.names import TASKS\nfrom .names import TASKS\nfrom ..errors import suggest",
    "tasks": "",
    "tasks.base": "import w2skd.records.rows",
    "tasks.classification": "from w2skd.tasks import base\nfrom w2skd import __version__",
    "tasks.catalog": "from w2skd.tasks.classification.task import ClassificationTask",
    "run": "import os\nfrom w2skd import records\nfrom w2skd.tasks.catalog import build_task",
}


def test_a_good_house_passes() -> None:
    assert wrong_arrows(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "target", "line"),
    [
        ("records", "from w2skd.run import train", "run", 1),
        ("records", "def f():\n    from w2skd.run import train", "run", 2),
        ("records", "def f():\n    import w2skd.run as run", "run", 2),
        ("records", "from w2skd import errors, run", "run", 1),
        ("records", "from . import run", "run", 1),
        ("records", "from .run import train", "run", 1),
        ("recipe.load", "from ..run import train", "run", 1),
        ("recipe.load", "from .. import run", "run", 1),
        ("recipe.load", "class A:\n    from w2skd.run import x", "run", 2),
        ("recipe.load", "if TYPE_CHECKING:\n    import w2skd.run", "run", 2),
        ("recipe.load", "from importlib import import_module\nimport_module('w2skd.run')", "run", 2),
        ("recipe.load", "from w2skd.records.rows import Row", "records", 1),
        ("records", "from w2skd.recipe.names import TASKS", "recipe.names", 1),
        ("records", "from w2skd import recipe", "recipe", 1),
        ("tasks.base", "from .classification import x", "tasks.classification", 1),
        ("tasks.classification", "from . import catalog", "tasks.catalog", 1),
        ("", "from w2skd.errors import suggest", "errors", 1),
        ("", "from .errors import suggest", "errors", 1),
        ("records", "from w2skd.nowhere import x", "nowhere", 1),
    ],
)
def test_a_wrong_arrow_is_found(module: str, source: str, target: str, line: int) -> None:
    assert wrong_arrows({**GOOD, module: source}) == [_arrow(module, target, line)]


def test_a_module_without_a_floor_is_found() -> None:
    assert wrong_arrows({**GOOD, "attic": ""}) == ["w2skd.attic has no floor in FLOORS"]


def test_the_package_may_load_its_parts_on_demand() -> None:
    assert wrong_arrows({**GOOD, "": "def __getattr__(name):\n    from w2skd.run import x\n    return x"}) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("errors", "import torch.nn", ["errors loads torch.nn", "records loads torch.nn"]),
        ("records", "from torch import nn", ["records loads torch.nn"]),
        ("records", "try:\n    import numpy as np\nexcept ImportError:\n    np = None", ["records loads numpy"]),
        ("records", "def f():\n    import torch", []),
        ("records", "if TYPE_CHECKING:\n    import torch", []),
        ("records", "import torchlight", []),
        ("run", "import torch", []),
    ],
)
def test_something_heavy_is_found(module: str, source: str, expected: list[str]) -> None:
    house = {"errors": "", "records": "from w2skd.errors import suggest", "run": "", module: source}
    assert sorted(problem.partition(" (")[0] for problem in heavy_imports(house)) == expected
