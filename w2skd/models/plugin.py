"""Models from a Python file of the user's.

Only the command line can name the file, so that a recipe cannot run code. The file is executed once in this process,
with all of its permissions.
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


_plugins: dict[Path, _Plugin] = {}  # resolved path -> plug-in; one set per process, like sys.modules


def load_plugin(path: Path) -> None:
    """Execute a Python file and register its public functions and classes as models ``plugin:<name>``.

    Public names are those in ``__all__``. Without ``__all__``, they are all names without a leading underscore of
    functions and classes that the file itself defines, and of `functools.partial` objects. Each callable takes the
    number of classes as its only argument and returns an `nn.Module`. The file's imports are resolved as in any module
    of this process.

    Loading the same content again does nothing; changed content replaces the old.

    Raises:
        UsageError: the file cannot be read, raises, or has no public callable, or an earlier plug-in has a callable of
            the same name.
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
    """Build a model with a public callable of a loaded plug-in.

    Args:
        name: name of the callable.
        classes: its only argument.
        image_size_px: not passed to the callable.

    Raises:
        RecipeError: no plug-in is loaded, or none has such a model.
        UsageError: the callable raises, or returns anything other than a module.
    """
    if not _plugins:
        raise RecipeError(f"plugin:{name} needs the file that defines {name!r}: add --plugin FILE.py to the command")
    path = next((path for path, plugin in _plugins.items() if name in plugin.factories), None)
    if path is None:
        known = [known for plugin in _plugins.values() for known in plugin.factories]
        files = ", ".join(str(path) for path in _plugins)
        raise RecipeError(f"{files} has no model {name!r}{suggest(name, known)}; it has {', '.join(known)}")
    try:
        model = _plugins[path].factories[name](classes)
    except Exception as error:  # a plug-in can raise any exception
        reason = _locate(path, error)
        raise UsageError(f"plugin:{name} cannot be built for {classes} classes: {reason}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"plugin:{name} of {path} returns a {type(model).__name__}, not a torch.nn.Module")
    return model


def plugin_fingerprint() -> dict[str, str] | None:
    """Return path -> SHA-256 of the loaded plug-ins for the run's records, or None if no plug-in is loaded."""
    return {str(path): plugin.sha256 for path, plugin in _plugins.items()} or None


def describe_plugin_error(error: BaseException) -> str | None:
    """Describe an error raised in a loaded plug-in in one line, with its location; None if no plug-in is involved."""
    files = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    for plugin in _plugins.values():
        path = sys.modules[plugin.module].__file__
        if path in files:
            return _locate(Path(path), error)
    return None


def forget_plugins() -> None:
    """Unload all plug-ins."""
    for plugin in _plugins.values():
        sys.modules.pop(plugin.module, None)
    _plugins.clear()


def _execute(path: Path, content: bytes) -> ModuleType:
    # The module is registered under a unique name because dataclasses and torch.compile look modules up by name. An
    # import could read other content than the bytes that were hashed, so these are executed directly.
    module = ModuleType(f"w2skd_plugin_{hashlib.sha256(bytes(path.resolve())).hexdigest()[:12]}")
    module.__file__ = str(path)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
        raise UsageError(f"--plugin {_locate(path, error)}") from error
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
            f"--plugin {path}: defines no public function or class; a model is a callable of the number of classes"
        )
    return factories


def _locate(path: Path, error: BaseException) -> str:
    """Describe an error in the user's file in one line: path, line, type, message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else (lines or [None])[-1]
    message = error.msg if isinstance(error, SyntaxError) else str(error).strip().partition("\n")[0]
    place = f"{path}, line {line}" if line is not None else str(path)
    return f"{place}: {type(error).__name__}{f': {message}' if message else ''}"
