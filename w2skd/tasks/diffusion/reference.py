"""Features and feature statistics of the real images: computed once, then cached.

Shapes: M real images, m of a batch, D features.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics

from w2skd.errors import CheckpointError, DataError, OutputError
from w2skd.method.teacher import state_fingerprint
from w2skd.platform.files import write_atomically, writing
from w2skd.tasks.diffusion.features import Extractor

_VERSION = 1
"""Version of the cache format and of the feature computation."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The real images that generated ones are compared with.

    Attributes:
        mu: mean of the features, float32 [D], as torch-fidelity computes it.
        sigma: their covariance, float64 [D, D].
        features: float32 [M, D].
        note: what went wrong with the cache, if anything.
    """

    mu: NDArray[np.float32]
    sigma: NDArray[np.float64]
    features: Tensor
    note: str | None = None

    def __len__(self) -> int:
        return len(self.features)


def open_reference(
    extractor: Extractor,
    batches: Callable[[], Iterable[Tensor]],
    *,
    key: Mapping[str, Any],
    cache: Path | None = None,
) -> Reference:
    """Load the reference of a set of images from the cache, or compute and cache it.

    A cached reference takes 4 bytes per feature (410 MB for 50,000 images and Inception's 2,048 features), on disk and
    in memory. A damaged file, or one of other images, is replaced; a cache that cannot be written is not an error.

    Args:
        extractor: its weights are part of the cache key.
        batches: yields the images, uint8 [m, 3, H, W]; called only if they are needed.
        key: plain values that identify the images: fingerprint, split, size.
        cache: folder; None is ``w2skd/fid`` in the user's cache, if there is one.

    Raises:
        DataError: there are fewer than two images.
        CheckpointError: the features are non-finite.
    """
    identity = {
        **key,
        "extractor": extractor.network_name,
        "weights": extractor.weights,
        "dimensions": extractor.dimensions,
        "version": _VERSION,
    }
    full_key = json.dumps(identity, sort_keys=True)
    folder = cache or default_cache()
    path = None if folder is None else folder / f"{hashlib.sha256(full_key.encode()).hexdigest()[:32]}.safetensors"
    note = None
    if path is not None and os.path.exists(path):  # Path.exists raises in a folder without search permission
        try:
            return _read(path, full_key)
        except CheckpointError as error:
            note = f"{error}: recomputed the features of the real images"
    features = torch.cat([extractor(images) for images in batches()] or [torch.empty(0, extractor.dimensions)])
    if len(features) < 2:
        raise DataError(f"fid.reference: {len(features)} real images, but FID and KID need at least two")
    bad = len(features) - int(features.isfinite().all(dim=1).sum())
    if bad:
        raise CheckpointError(f"{extractor.name}: has non-finite features for {bad} of {len(features)} real images")
    statistics = fid_features_to_statistics(features)
    reference = Reference(statistics["mu"], statistics["sigma"], features, note)
    problem = "there is no home directory for a cache (set fid.cache)"
    if path is not None:
        try:
            _write(path, reference, full_key)
            return reference
        except OutputError as error:
            problem = str(error)
    return replace(reference, note=f"{problem}: the next run has to recompute the features of the real images")


def default_cache() -> Path | None:
    """Return ``w2skd/fid`` in the user's cache (XDG base directory specification).

    None if the user has no home directory, as in containers that run with an arbitrary user id.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            return None
    return cache / "w2skd" / "fid"


def _write(path: Path, reference: Reference, key: str) -> None:
    mu, sigma = torch.from_numpy(reference.mu), torch.from_numpy(reference.sigma)
    tensors = {"features": reference.features.contiguous(), "mu": mu, "sigma": sigma}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_safetensors(tensors, {"key": key, "sum": state_fingerprint(tensors)}))


def _read(path: Path, key: str) -> Reference:
    """Read a cached reference.

    Raises:
        CheckpointError: the file is damaged, or belongs to other images.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                raise CheckpointError(f"{path}: belongs to other images")
            tensors = {name: file.get_tensor(name) for name in ("features", "mu", "sigma")}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({str(error).splitlines()[0][:120]})") from None
    if metadata.get("sum") != state_fingerprint(tensors):
        raise CheckpointError(f"{path}: damaged (wrong checksum)")
    return Reference(tensors["mu"].numpy(), tensors["sigma"].numpy(), tensors["features"])
