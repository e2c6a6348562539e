"""Safe reading of torch's ``.pt`` files."""

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from w2skd.errors import CheckpointError
from w2skd.weights.torch_file import read_torch_file


class UnsafeCheckpoint(CheckpointError):
    """Torch's restricted unpickler refuses a file."""


def load_foreign_pt(path: Path) -> Any:
    """Read a ``.pt`` file of another tool onto the CPU, without executing pickled code.

    What torch's restricted unpickler refuses is read by `w2skd.weights.torch_file`, where unknown classes are opaque.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, or one of w2skd's own checkpoints with code in it.
    """
    try:
        return load_pt(path)
    except UnsafeCheckpoint as refusal:
        values = read_torch_file(path)
        if isinstance(values, dict) and "engine" in values and "format" in values:
            raise refusal from None
        return values


def load_pt(path: Path) -> Any:
    """Read a ``.pt`` file of tensors and plain values onto the CPU, without executing pickled code.

    Raises:
        CheckpointError: the file is missing, truncated, or contains code.
    """
    try:
        # Checkpoints of other trainers contain their options as an argparse.Namespace: creating one runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of the pickle
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
        raise UnsafeCheckpoint(f"{path}: {problem}") from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or truncated ({reason[:120]})") from None
    except Exception:  # on damaged input the unpickler can raise any exception
        raise UnsafeCheckpoint(f"{path}: damaged or not a checkpoint") from None
