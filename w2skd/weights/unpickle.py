"""torch's ``.pt`` files, read without running what they carry."""

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from w2skd.errors import CheckpointError


def load_pt(path: Path) -> Any:
    """Read a ``.pt`` file of tensors and plain values, onto the CPU.

    Raises:
        CheckpointError: the file is missing, cut off, or carries code.
    """
    try:
        # The options of other people's training, which their checkpoints keep, are a bare namespace: to create and to
        # fill one runs no code, and nothing here looks into it.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise CheckpointError(
                f"{path}: refused, since it carries pickled code ({code[1]}) that loading could run"
            ) from None
        raise CheckpointError(f"{path}: damaged or not a checkpoint") from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or cut off ({reason[:120]})") from None
    except Exception:  # damaged input makes the unpickler raise about anything
        raise CheckpointError(f"{path}: damaged or not a checkpoint") from None
