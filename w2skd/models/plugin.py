"""Models from the user's own Python file.

The file is named on the command line and never by a recipe, so that a recipe can't run code. It is executed once in
this process, with all rights that the process has.
"""

import hashlib
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NamedTuple

from torch import nn

from w2skd.errors import RecipeError, UsageError, suggest


class _Plugin(NamedTuple):
    sha256: str
    module: str
    factories: dict[str, Callable[[int], object]]


_plugins: dict[Path, _Plugin] = {}  # by resolved path: a process has one set of models, as it has one set of modules


def load_plugin(path: Path) -> None:
    """Execute a Python file and make its public functions and classes models ``plugin:<name>``.

    Public is what ``__all__`` names; without it, every function and class that the file itself defines, not imports,
    and every `functools.partial`, under a name without a leading underscore. Each is called with the number of classes
    as its only argument and returns an `nn.Module`. What the file imports must be importable from where w2skd runs.

    Loading the same content again changes nothing; changed content takes the place of the old.

    Raises:
        UsageError: the file is missing or not readable, raises, has no public callable, or has one of the same name as
            a plug-in loaded before.
    """
    path = path.absolute()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--plugin {path}: cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    key = path.resolve()
    if key in _plugins and _plugins[key].sha256 == sha256:
        return
    module = _execute(path, content)
    factories = _public_callables(path, module)
    for other, plugin in _plugins.items():
        clashes = sorted(set(factories) & set(plugin.factories))
        if other != key and clashes:
            raise UsageError(f"--plugin {path}: plugin:{clashes[0]} is already a model of {other}; rename one of them")
    _plugins[key] = _Plugin(sha256, module.__name__, factories)


def build_from_plugin(name: str, classes: int, image_size_px: int | None = None) -> nn.Module:
    """The model that a public callable of a loaded plug-in returns.

    Args:
        name: without prefix.
        classes: its only argument.
        image_size_px: not told to it.

    Raises:
        RecipeError: no plug-in is loaded, or none has such a model.
        UsageError: it raises, or returns something else than a module.
    """
    if not _plugins:
        raise RecipeError(f"plugin:{name} needs the file that defines {name!r}: add --plugin FILE.py to the command")
    for path, plugin in _plugins.items():
        if name in plugin.factories:
            return _call(path, name, plugin.factories[name], classes)
    known = [known for plugin in _plugins.values() for known in plugin.factories]
    files = ", ".join(str(path) for path in _plugins)
    raise RecipeError(f"{files} has no model {name!r}{suggest(name, known)}; it has {', '.join(known)}")


def plugin_fingerprint() -> dict[str, str] | None:
    """Path and SHA-256 of what was loaded, for a run's records: one entry a file, None without any."""
    return {str(path): plugin.sha256 for path, plugin in _plugins.items()} or None


def blame_plugin(error: BaseException) -> str | None:
    """Where in a loaded plug-in an error arose, and which one it is, in one line; None where it is of no plug-in."""
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    for plugin in _plugins.values():
        path = sys.modules[plugin.module].__file__
        if path in files:
            return _blame(Path(path), error)
    return None


def forget_plugins() -> None:
    """As if none had been loaded."""
    for plugin in _plugins.values():
        sys.modules.pop(plugin.module, None)
    _plugins.clear()


def _execute(path: Path, content: bytes) -> ModuleType:
    # A name of its own for each path; registered, since dataclasses and the compiler look modules up by name. The bytes
    # that were hashed are executed, not what an import would read or has cached.
    module = ModuleType(f"w2skd_plugin_{hashlib.sha256(bytes(path.resolve())).hexdigest()[:12]}")
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is told to the user
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
        raise UsageError(f"--plugin {_blame(path, error)}") from error
    return module


def _public_callables(path: Path, module: ModuleType) -> dict[str, Callable[[int], object]]:
    def own(value: object) -> bool:
        return isinstance(value, partial) or (
            isinstance(value, FunctionType | type) and value.__module__ == module.__name__
        )

    content = vars(module)
    if "__all__" in content:
        public = {name: content.get(name) for name in content["__all__"]}
    else:
        public = {name: value for name, value in content.items() if not name.startswith("_") and own(value)}
    factories = {name: value for name, value in public.items() if callable(value)}
    if not factories:
        raise UsageError(
            f"--plugin {path}: defines no public function or class; each is a model, called with the number of classes"
        )
    return factories


def _call(path: Path, name: str, factory: Callable[[int], object], classes: int) -> nn.Module:
    try:
        model = factory(classes)
    except Exception as error:  # the user's code, as above
        raise UsageError(f"plugin:{name} cannot be built for {classes} classes: {_blame(path, error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"plugin:{name} of {path} returns a {type(model).__name__}, not a torch.nn.Module")
    return model


def _blame(path: Path, error: BaseException) -> str:
    """Where in the user's file something went wrong, and what, in one line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
    message = error.msg if isinstance(error, SyntaxError) else str(error).strip().partition("\n")[0]
    place = f"{path}, line {line}" if line is not None else str(path)
    return f"{place}: {type(error).__name__}{f': {message}' if message else ''}"
