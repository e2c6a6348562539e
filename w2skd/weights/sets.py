"""Find the sets of tensors in what a checkpoint contains."""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from w2skd.weights.pickle_reader import Opaque

StateDict = Mapping[str, Tensor]

_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?|shadow)", re.IGNORECASE)
"""Keys of averaged weights: ``model_ema``, ``state_dict_ema``, ``ema_state_dict``, ``swa_model`` and others."""

_PLAIN_KEYS = ("state_dict", "model", "model_state_dict", "module", "net")
"""Keys of the weights in checkpoints of torchvision's references, timm, DeiT, Lightning, DeepSpeed and tutorials."""

_MOST_DEEP = 8
"""Levels of containers that are searched for weights."""

_LISTED_KEYS = 6
"""Maximum number of keys that a message lists."""


def find_sets(values: Any) -> dict[str, dict[str, Tensor]]:
    """Return every dictionary with tensors in it, without its other entries, by its path of keys joined by dots."""
    found: dict[str, dict[str, Tensor]] = {}
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), values)])
    seen = set[int]()
    while waiting:
        path, container = waiting.popleft()
        if not isinstance(container, dict | list | tuple) or id(container) in seen or len(path) > _MOST_DEEP:
            continue
        seen.add(id(container))
        items = container.items() if isinstance(container, dict) else enumerate(container)
        state = {}
        for name, value in items:
            if isinstance(value, Tensor) and isinstance(name, str):
                state[name] = value
            else:
                # The text of a deeply nested key would overflow.
                waiting.append(((*path, str(name) if isinstance(name, str | int) else "?"), value))
        if state:
            found[".".join(path)] = state
    return found


def likeliest(sets: Mapping[str, StateDict]) -> str:
    """Return the key of the set that is most likely a model's weights: large, averaged, under a usual key."""
    largest = max(sum(tensor.numel() for tensor in state.values()) for state in sets.values())
    # Averages and raw weights are equally large; the states of optimizers and loose tensors are smaller.
    return min(sets, key=lambda key: _rank(key, sets[key], largest))


def _rank(key: str, state: StateDict, largest: int) -> tuple[Any, ...]:
    """Order sets by how likely they are a model's weights, the likeliest first."""
    is_optimizer = bool(re.search(r"(^|\.)(optim|scheduler|scaler)", key))
    is_small = 2 * sum(tensor.numel() for tensor in state.values()) < largest
    last = key.rpartition(".")[2]
    known = _PLAIN_KEYS.index(last) if last in _PLAIN_KEYS else len(_PLAIN_KEYS)
    return is_optimizer, is_small, not _AVERAGED.search(key), known, key.count(".")


def describe_other_content(values: Any) -> str:
    """Describe a file without a set of tensors, and what to do."""
    if (code := code_in(values)) is not None:
        return code
    keys = f"; its keys: {', '.join(map(str, list(values)[:_LISTED_KEYS]))}" if isinstance(values, dict) else ""
    return f"contains no weights: expected a state dict, or one anywhere inside{keys}"


def code_in(values: Any) -> str | None:
    """Describe the code that a file contains, and what to do; None if it contains none."""
    opaque = next(iter(_opaque_in(values)), None)
    if opaque is not None and isinstance(opaque.state, dict) and "_modules" in opaque.state:
        return (
            f"refused: it contains a whole pickled model ({opaque.made_by}), and loading that would run code; in the "
            "program that made it, save torch.save(model.state_dict(), ...) instead"
        )
    if opaque is not None and opaque.made_by is not None:
        return f"refused: it contains pickled code ({opaque.made_by}) that loading could run"
    return None


def _opaque_in(values: Any) -> Iterator[Opaque]:
    """Iterate over the values that need code to be made, those of whole models first."""
    waiting, seen, others = [values], set[int](), list[Opaque]()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Opaque):
            if isinstance(value.state, dict) and "_modules" in value.state:
                yield value
            others.append(value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    yield from others
