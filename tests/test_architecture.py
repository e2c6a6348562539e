"""Architecture rules: import order, modules free of torch, what the training loop may know, sizes."""

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
    "": 0,  # w2skd/__init__, which imports on demand only
    "errors": 1,
    "platform": 2,
    "recipe": 3,
    "records": 4,
    "method": 5,
    "data": 6,
    "pictures": 6,
    "models": 6,
    "weights": 7,
    "tasks.base": 8,
    "training": 9,
    "tasks": 10,
    "tasks.catalog": 11,
    "report": 12,
    "runs": 13,
    "cli": 14,
    "__main__": 15,
}
"""Module or folder -> floor. Imports go to lower floors or stay within a folder; a module's own entry wins."""

TORCH_FREE = (
    *("", "errors", "platform.files", "platform.signals", "recipe", "records", "report", "runs.options", "cli"),
    *(
        "models.names",
        "tasks.catalog",
        "tasks.classification.recipe",
        "tasks.detection.recipe",
        "tasks.diffusion.recipe",
    ),
)
"""Modules and folders that load no heavy package."""

OF_DIFFUSION = ("diffusers", "torch_fidelity")
HEAVY = ("torch", "torchvision", "numpy", "matplotlib", "PIL", "safetensors", *OF_DIFFUSION)

REPORT_MAY_IMPORT = ("errors", "platform.files", "recipe", "records", "report")
METHOD_MAY_IMPORT = ("errors", "method")

MOST_LINES, MOST_STATEMENTS, MOST_PARAMETERS, MOST_LOOSE_MODULES = 400, 60, 6, 4


class Import(NamedTuple):
    """One import, resolved.

    Attributes:
        target: dotted name of a module; relative to w2skd if it belongs to it ("" is w2skd itself).
        ours: whether it belongs to w2skd.
        deferred: it runs when a function is called or for type checkers only, not when the module is loaded.
    """

    line: int
    target: str
    ours: bool
    deferred: bool


def sources() -> dict[str, str]:
    """Return the source of every module by its name relative to w2skd."""
    return {_name(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def _name(path: Path) -> str:
    return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


def imports(module: str, source: str, modules: Mapping[str, str]) -> Iterator[Import]:
    """Yield every import of a module: absolute, relative, in functions, under TYPE_CHECKING, by ``import_module``."""
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
    """Return the module that ``w2skd.<name>`` is or belongs to."""
    while name and name not in modules and "." in name:
        parent = name.rpartition(".")[0]
        if parent in modules:
            return parent
        name = parent
    return name if name in modules or _looks_like_a_module(name) else ""


def _looks_like_a_module(name: str) -> bool:
    return name != "" and not name.startswith("__") and name.islower()


def floor(module: str) -> int | None:
    """Return a module's floor, or None if it has none."""
    while module not in FLOORS and "." in module:
        module = module.rpartition(".")[0]
    return FLOORS.get(module)


def wrong_arrows(modules: Mapping[str, str]) -> list[str]:
    """List imports that go up or sideways, and modules without a floor."""
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
    if found.target == "" or there < here:
        return True
    return there == here and "." in module and _folder(module) == _folder(found.target)


def _folder(module: str) -> str:
    """Return the folder whose modules may import each other; each task has one of its own."""
    parts = module.split(".")
    return ".".join(parts[:2] if parts[0] == "tasks" else parts[:1])


def _is_in(module: str, places: Sequence[str]) -> bool:
    return any(module == place or (place != "" and module.startswith(f"{place}.")) for place in places)


def heavy_imports(
    modules: Mapping[str, str], starts: Sequence[str] = TORCH_FREE, packages: Sequence[str] = HEAVY
) -> list[str]:
    """List the packages that loading a module imports, directly or through other modules."""
    heavy = []
    for start in (module for module in modules if _is_in(module, starts)):
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


def test_other_tasks_do_not_load_the_packages_of_diffusion() -> None:
    assert heavy_imports(sources(), ("runs", "tasks.classification", "tasks.detection"), OF_DIFFUSION) == []
    assert heavy_imports(sources(), ("tasks.diffusion",), OF_DIFFUSION) != []


@pytest.mark.parametrize(("folder", "allowed"), [("report", REPORT_MAY_IMPORT), ("method", METHOD_MAY_IMPORT)])
def test_reports_read_records_only_and_the_method_stands_alone(folder: str, allowed: Sequence[str]) -> None:
    modules = sources()
    wrong = [
        f"{module} -> {found.target}"
        for module in modules
        if _is_in(module, (folder,))
        for found in imports(module, modules[module], modules)
        if found.ours and not _is_in(found.target, allowed)
    ]
    assert wrong == []


def test_the_command_line_starts_without_torch_and_matplotlib() -> None:
    code = "import sys, w2skd.cli.main; print(sorted({'torch', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_training_is_one_short_loop_and_knows_no_task() -> None:
    assert len((PACKAGE / "training" / "engine.py").read_text(encoding="utf-8").splitlines()) < 300
    words = ("classif", "detect", "diffusion", "label", "logit", "box", "denois", "sampler", "fid", "unet")
    found = [
        (path.name, word)
        for path in (PACKAGE / "training").glob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8").lower()
    ]
    assert found == []


def test_only_one_module_names_the_arms() -> None:
    found = [
        (module, node.value)
        for module, source in sources().items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and node.value in ("baseline", "w2s") and module != "recipe.arms"
    ]
    assert found == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {part for module in sources() for part in module.split(".")}
    assert names & {"utils", "util", "helpers", "helper", "common", "misc", "tools", "shared"} == set()


def test_few_modules_lie_loose_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_LOOSE_MODULES


def test_packages_have_empty_init_files() -> None:
    filled = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE and path.stat().st_size]
    assert filled == []


def test_no_file_is_long() -> None:
    lengths = {module: len(source.splitlines()) for module, source in sources().items()}
    assert {module: length for module, length in lengths.items() if length > MOST_LINES} == {}


def test_no_function_is_long_or_takes_many_parameters() -> None:
    found = []
    for module, source in sources().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                statements = sum(isinstance(inner, ast.stmt) for inner in ast.walk(node)) - 1
                arguments = node.args
                names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                parameters = len([name for name in names if name not in ("self", "cls")])
                if statements > MOST_STATEMENTS or parameters > MOST_PARAMETERS:
                    found.append((module, node.name, statements, parameters))
    assert found == []


GOOD = {
    "": "",
    "errors": "",
    "recipe": "",
    "recipe.schema": "",
    "recipe.load": "from w2skd.recipe.schema import Recipe\nfrom .schema import Recipe\nfrom ..errors import suggest",
    "records": "from w2skd.errors import suggest",
    "tasks": "",
    "tasks.base": "import w2skd.records",
    "tasks.red": "",
    "tasks.red.recipe": "from w2skd.recipe.schema import Recipe\ndef f():\n    from .task import RedTask",
    "tasks.red.task": "from w2skd.tasks import base\nfrom w2skd.tasks.red.recipe import RedRecipe",
    "tasks.blue": "",
    "tasks.blue.task": "from w2skd import __version__",
    "tasks.catalog": "from w2skd.tasks.red.recipe import RedRecipe",
    "runs": "import os\nfrom w2skd import records\nfrom w2skd.tasks.catalog import recipe_types",
}


def test_a_good_house_passes() -> None:
    assert wrong_arrows(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "target", "line"),
    [
        ("records", "from w2skd.runs import train", "runs", 1),
        ("records", "def f():\n    from w2skd.runs import train", "runs", 2),
        ("records", "def f():\n    import w2skd.runs as runs", "runs", 2),
        ("records", "from w2skd import errors, runs", "runs", 1),
        ("records", "from . import runs", "runs", 1),
        ("records", "from .runs import train", "runs", 1),
        ("recipe.load", "from ..runs import train", "runs", 1),
        ("recipe.load", "from .. import runs", "runs", 1),
        ("recipe.load", "class A:\n    from w2skd.runs import x", "runs", 2),
        ("recipe.load", "if TYPE_CHECKING:\n    import w2skd.runs", "runs", 2),
        ("recipe.load", "from importlib import import_module\nimport_module('w2skd.runs')", "runs", 2),
        ("recipe.load", "from w2skd.records import Row", "records", 1),
        ("tasks.base", "from .red.task import RedTask", "tasks.red.task", 1),
        ("tasks.red.task", "from w2skd.tasks import catalog", "tasks.catalog", 1),
        ("tasks.red.task", "from ..blue.task import BlueTask", "tasks.blue.task", 1),
        ("tasks.red.task", "def f():\n    from w2skd.tasks.blue.task import BlueTask", "tasks.blue.task", 2),
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
    assert wrong_arrows({**GOOD, "": "def __getattr__(name):\n    from w2skd.runs import x\n    return x"}) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("errors", "import torch.nn", ["errors loads torch.nn", "records loads torch.nn"]),
        ("records", "from torch import nn", ["records loads torch.nn"]),
        ("records", "try:\n    import numpy as np\nexcept ImportError:\n    np = None", ["records loads numpy"]),
        ("records", "def f():\n    import torch", []),
        ("records", "if TYPE_CHECKING:\n    import torch", []),
        ("records", "import torchlight", []),
        ("runs", "import torch", []),
    ],
)
def test_something_heavy_is_found(module: str, source: str, expected: list[str]) -> None:
    house = {"errors": "", "records": "from w2skd.errors import suggest", "runs": "", module: source}
    assert sorted(problem.partition(" (")[0] for problem in heavy_imports(house)) == expected
