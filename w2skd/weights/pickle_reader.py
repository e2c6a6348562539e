"""Read the structure of a pickle without executing it.

Python's unpickler calls what the stream names: functions, constructors, ``__setstate__``. This reader interprets the
same opcodes (PEP 307, PEP 3154) and calls nothing. It knows plain containers and values and the few functions by which
torch stores tensors; everything else becomes an `Opaque` value. Memory and time are proportional to the stream.
"""

import pickletools
from dataclasses import dataclass
from typing import IO, Any

_MARK = object()

_NUMBERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"})
_TEXTS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
)
_BYTES = frozenset({"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"})
_VALUES = _NUMBERS | _TEXTS | _BYTES
"""Opcodes that push their argument."""

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME", "READONLY_BUFFER"})

_KEYS = (str, int, float, bytes, type(None))
"""Types of dictionary keys; entries with other keys are dropped. The hash of a deeply nested tuple would overflow."""

_ARGUMENTS = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 4, "_rebuild_tensor_v3": 7}
"""Functions of `torch._utils` that rebuild a tensor -> number of arguments used here."""


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A function or class that the stream names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Opaque:
    """A value that is not known here.

    Attributes:
        made_by: class or function that would have made it, if the stream names one.
        state: what would have been set on it.
    """

    made_by: Global | None = None
    state: Any = None


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """The values of one or more tensors, stored elsewhere in the file.

    Attributes:
        kind: name of the storage class, such as ``FloatStorage``.
        key: identifies the storage in the file.
    """

    kind: str
    key: str


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A view of a storage; all numbers count elements and are unchecked.

    Attributes:
        storage: its values.
        offset: of the first element.
        size: of each dimension.
        stride: of each dimension.
        dtype: name of a torch dtype; None is that of the storage.
    """

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None


class PickleError(Exception):
    """The stream is no valid pickle."""


def read_pickle(stream: IO[bytes]) -> Any:
    """Read one pickle and leave the stream behind its end.

    Returns:
        Plain values, dictionaries (also for OrderedDict and defaultdict), lists (also for sets), tuples, and `Global`,
        `Opaque`, `StorageRef` and `TensorRef`.

    Raises:
        PickleError: the stream is truncated or invalid.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except Exception as error:  # pickletools and the stack of an invalid stream raise many kinds
        raise PickleError(str(error)) from None
    raise PickleError("no end")


class _Machine:
    """The stack and the memo of an unpickler."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode other than STOP."""
        stack = self.stack
        if name in _VALUES:
            stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name.endswith("GET"):
            stack.append(self._memo[int(argument)])
        elif name.endswith("PUT"):
            self._memo[int(argument)] = stack[-1]
        elif name not in _IGNORED and not self._contain(name) and not self._refer(name, argument):
            raise PickleError(f"unknown opcode {name}")

    def _contain(self, name: str) -> bool:
        """Execute an opcode about the stack or containers; return False for others."""
        stack = self.stack
        match name:
            case "MARK":
                stack.append(_MARK)
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "DUP":
                stack.append(stack[-1])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._items()
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "LIST" | "FROZENSET":
                stack.append(self._items())
            case "TUPLE":
                stack.append(tuple(self._items()))
            case "DICT":
                items = self._items()
                stack.append({})
                self._set(items)
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._items())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._items())
            case _:
                return False
        return True

    def _refer(self, name: str, argument: Any) -> bool:
        """Execute an opcode about classes, functions or other files; return False for others."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(Global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(Global(str(module), str(attribute)))
            case "REDUCE" | "NEWOBJ":
                arguments, made_by = stack.pop(), stack.pop()
                stack.append(_made(made_by, arguments))
            case "NEWOBJ_EX":
                _, arguments, made_by = stack.pop(), stack.pop(), stack.pop()
                stack.append(_made(made_by, arguments))
            case "INST":
                self._items()
                stack.append(Opaque(Global(*argument.split(" ", 1))))
            case "OBJ":
                made_by = self._items()[0]
                stack.append(Opaque(made_by if isinstance(made_by, Global) else None))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Opaque):
                    stack[-1].state = state
            case "PERSID":
                stack.append(Opaque())
            case "BINPERSID":
                stack.append(_stored(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER":
                stack.append(Opaque())
            case _:
                return False
        return True

    def _items(self) -> list[Any]:
        """Remove and return everything above the last mark."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1] += items

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, _KEYS):
                    target[key] = value


def _made(made_by: Any, arguments: Any) -> Any:
    """Return what a function or class of the stream stands for."""
    if not isinstance(made_by, Global):
        return Opaque()
    known = arguments if isinstance(arguments, tuple) else ()
    match str(made_by):
        case "collections.OrderedDict" | "collections.defaultdict" | "builtins.dict":
            pairs = known[0] if known and isinstance(known[0], list) else []
            return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and isinstance(pair[0], _KEYS)}
        case "_codecs.encode" if len(known) == 2 and isinstance(known[0], str) and known[1] == "latin1":
            return known[0].encode("latin1")  # bytes in protocols 0 to 2
        case "__builtin__.bytes" | "builtins.bytes" if not known:
            return b""
        case "torch.Size" if known and isinstance(known[0], tuple | list):
            return tuple(known[0])
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" if known:
            return known[0]
        case "torch._tensor._rebuild_from_type_v2" if len(known) > 2:
            return _made(known[0], known[2]) if str(known[0]) != str(made_by) else Opaque(made_by)
    needed = _ARGUMENTS.get(made_by.name, 0) if made_by.module == "torch._utils" else 0
    if needed and len(known) >= needed and isinstance(known[0], StorageRef):
        storage, offset, size, stride = known[:4]
        whole = isinstance(size, tuple) and isinstance(stride, tuple)
        if whole and all(isinstance(number, int) for number in (offset, *size, *stride)):
            dtype = known[6].name if needed > 4 and isinstance(known[6], Global) else None
            return TensorRef(storage, offset, size, stride, dtype)
    return Opaque(made_by)


def _stored(reference: Any) -> Any:
    """Return the storage that a persistent id stands for: ``("storage", type, key, device, numel)``."""
    match reference:
        case ("storage" | b"storage", Global(module="torch" | "torch.storage", name=kind), str() | int() as key, *more):
            is_view = len(more) > 2 and more[2] is not None  # of another storage, before torch 0.4
            return Opaque() if is_view else StorageRef(kind, str(key))
        case ("module", Global() as kind, *_):  # files before torch 1.6 store the source of a module's class with it
            return kind
    return Opaque()
