"""Safe reading of w2skd's own ``.pt`` files; for those of others see `w2skd.weights.torch_file`."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from w2skd.errors import CheckpointError


def load_pt(path: Path) -> Any:
    """Read a ``.pt`` file of tensors and plain values onto the CPU, without executing pickled code.

    Raises:
        CheckpointError: the file is missing, truncated, or contains code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        try:
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
        except RecursionError:  # the message contains a deeply nested value
            code = None
        problem = (
            f"refused: it contains pickled code ({code[1]}) that loading could run"
            if code
            else "damaged or not a checkpoint"
        )
        raise CheckpointError(f"{path}: {problem}") from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or truncated ({reason[:120]})") from None
    except Exception:  # on damaged input the unpickler can raise any exception
        raise CheckpointError(f"{path}: damaged or not a checkpoint") from None
