"""What real images look like to a feature extractor: computed once, and kept in a cache.

Legend: M images, D features.
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
from w2skd.platform.files import write_atomically, writing
from w2skd.tasks.diffusion.features import Extractor

_VERSION = 1
"""Of what is cached, and of how images become features."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real images, to be compared with.

    Attributes:
        mu: mean of the features, float32 [D], as torch-fidelity computes it.
        sigma: their covariance, float64 [D, D].
        features: float32 [M, D].
        note: what became of the cache, for people; None where there is nothing to tell.
    """

    mu: NDArray[np.float32]
    sigma: NDArray[np.float64]
    features: Tensor
    note: str | None = None

    @property
    def count(self) -> int:
        """M."""
        return len(self.features)


def open_reference(
    extractor: Extractor,
    batches: Callable[[], Iterable[Tensor]],
    *,
    key: Mapping[str, Any],
    cache: Path | None = None,
) -> Reference:
    """The reference of some images: out of the cache, else computed and put there.

    A file takes 4 bytes a feature (50,000 images in Inception's 2,048: 410 MB), and as much memory. One that is cut
    off, damaged or of other images is made anew, and a cache that cannot be written is done without.

    Args:
        extractor: its weights are a part of the key.
        batches: the images, uint8 [m, 3, H, W], called when they are needed only.
        key: plain values that tell these images from others: fingerprint, split, size.
        cache: folder; None is ``w2skd/fid`` in the user's cache, where there is one.

    Raises:
        DataError: there are fewer than two images.
        CheckpointError: the features are not finite.
    """
    folder = cache or default_cache()
    identity = {
        **key,
        "extractor": extractor.registered_name,
        "weights": extractor.weights,
        "dimensions": extractor.dimensions,
        "version": _VERSION,
    }
    told = json.dumps(identity, sort_keys=True)
    path = None if folder is None else folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
    note = None
    if path is not None and os.path.exists(path):  # pathlib's own would fail in a folder that may not be entered
        try:
            return _read(path, told)
        except _Unusable as problem:
            note = f"{path}: {problem}: the features of the real images were computed anew"
    features = torch.cat([extractor(images) for images in batches()] or [torch.empty(0, extractor.dimensions)])
    if len(features) < 2:
        raise DataError(f"fid.reference: {len(features)} real images: FID and KID compare with at least two")
    lost = len(features) - int(features.isfinite().all(dim=1).sum())
    if lost:
        raise CheckpointError(f"{extractor.name}: the features of {lost} of {len(features)} real images are not finite")
    statistics = fid_features_to_statistics(features)
    made = Reference(statistics["mu"], statistics["sigma"], features, note)
    not_kept = "there is no home directory to keep a cache in (fid.cache names a folder)"
    if path is not None:
        try:
            _write(path, made, told)
            return made
        except OutputError as problem:
            not_kept = str(problem)
    return replace(made, note=f"{not_kept}: the features of the real images will be computed again next time")


def default_cache() -> Path | None:
    """``w2skd/fid`` in the user's cache, as the XDG base directory specification says where that is.

    None where the user has no home directory, as in containers with a user id that nobody entered.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            return None
    return cache / "w2skd" / "fid"


class _Unusable(Exception):
    """A file of the cache cannot be used; the message says why."""


def _write(path: Path, reference: Reference, told: str) -> None:
    tensors = _tensors(reference)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_safetensors(tensors, {"key": told, "sum": _sum(tensors)}))


def _read(path: Path, told: str) -> Reference:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != told:
                raise _Unusable("belongs to other images")
            tensors = {name: file.get_tensor(name) for name in ("features", "mu", "sigma")}
    except (SafetensorError, OSError) as error:
        raise _Unusable(f"damaged or cut off ({str(error).splitlines()[0][:120]})") from None
    if metadata.get("sum") != _sum(tensors):
        raise _Unusable("damaged (wrong checksum)")
    return Reference(tensors["mu"].numpy(), tensors["sigma"].numpy(), tensors["features"])


def _tensors(reference: Reference) -> dict[str, Tensor]:
    mu, sigma = torch.from_numpy(reference.mu), torch.from_numpy(reference.sigma)
    return {"features": reference.features.contiguous(), "mu": mu, "sigma": sigma}


def _sum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
