"""Feature extractors for FID and KID: torch-fidelity's networks, opened from checked weights.

torch-fidelity's own loader can run code from a weights file. Files are therefore read safely here, compared with the
network's layout, and passed to torch-fidelity as a re-saved copy. Two families are left to torch-fidelity's loader:

    clip-*      TorchScript files; only OpenAI's own are accepted, identified by SHA-256
    dinov2-*    code and weights of facebookresearch/dinov2, from torch.hub or its cache

Shapes: n images, H and W px, D features.
"""

import io
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP_FILES
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor
from torchvision.models import VGG16_Weights, vgg16

from w2skd.errors import CheckpointError, RecipeError
from w2skd.method.teacher import state_fingerprint
from w2skd.weights.fetch import alone, cached_or_fetched, file_sum, one_line, patience
from w2skd.weights.fit import fit
from w2skd.weights.load import check_finite, has_safetensors
from w2skd.weights.sets import code_in
from w2skd.weights.torch_file import read_torch_file

_URLS: Mapping[str, str] = {
    "inception-v3-compat": URL_INCEPTION_V3,
    "vgg16": VGG16_Weights.IMAGENET1K_V1.url,
    **CLIP_URLS,
}

_ALTERNATIVE = "or set fid.extractor to checkpoint:RUN, a classifier trained with w2skd, which needs no download"


class Extractor:
    """Maps images to features in float32, without gradients, in any autocast or inference mode of the caller.

    Args:
        network: an extractor of torch-fidelity's interface with one feature layer; moved and frozen in place.
        name: as in the recipe.
        weights: SHA-256 of its weights, in hexadecimal.
        dimensions: D; None determines it by one forward pass.
        device: where it runs.
        batch_size: images per forward pass; affects speed, memory and rounding only.
    """

    def __init__(
        self,
        network: FeatureExtractorBase,
        *,
        name: str,
        weights: str,
        dimensions: int | None = None,
        device: torch.device | str,
        batch_size: int,
    ):
        self.name = name
        self.weights = weights
        self._network = network.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._batch_size = batch_size
        self.dimensions = dimensions or self(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[1]

    @property
    def network_name(self) -> str:
        """Name of the network, independent of where its weights are stored."""
        return str(self._network.get_name())

    def __call__(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: uint8 [n, 3, H, W], on any device.

        Returns:
            float32 [n, D] on the CPU, in the order of the images.

        Raises:
            CheckpointError: the network is a classifier whose features are not one vector per image.
        """
        assert images.dtype == torch.uint8, images.dtype
        assert images.ndim == 4 and images.shape[1] == 3, tuple(images.shape)  # noqa: PT018 (the second needs the first)
        parts = []
        # Inference tensors could not be used everywhere, so inference mode is switched off.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            for first in range(0, len(images), self._batch_size):
                (features,) = self._network(images[first : first + self._batch_size].to(self._device))
                parts.append(features.float().cpu())
            return torch.cat(parts) if parts else torch.empty(0, self.dimensions)


class BareInception(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """``inception-v3-compat`` with freshly initialised weights; defines the layout of its weights file."""

    def __init__(self) -> None:
        super().__init__("inception-v3-compat", ["2048"], feature_extractor_weights_path=_resaved({}))

    def load_state_dict(self, state: Mapping[str, Any], *options: Any, **more: Any) -> Any:
        """Ignore the empty state that torch-fidelity's constructor loads; otherwise like `nn.Module`."""
        return super().load_state_dict(state, *options, **more) if state or more else None


def open_extractor(name: str, weights: Path | None, *, device: torch.device | str, batch_size: int) -> Extractor:
    """Open one of torch-fidelity's feature extractors with its default layer for FID.

    Args:
        name: one of `w2skd.tasks.diffusion.recipe.FEATURE_EXTRACTORS`.
        weights: a state dict as ``.pth`` or ``.safetensors``, or OpenAI's own file of a CLIP; None takes the weights
            from torch's cache, or downloads them.
        device: where it runs.
        batch_size: images per forward pass.

    Raises:
        RecipeError: this extractor takes no file.
        CheckpointError: the weights are missing, damaged, unsafe, or those of another network.
    """
    network, fingerprint = _load_dinov2(name, weights) if name.startswith("dinov2") else _load_file(name, weights)
    return Extractor(network, name=name, weights=fingerprint, device=device, batch_size=batch_size)


def _load_file(name: str, weights: Path | None) -> tuple[FeatureExtractorBase, str]:
    """Load an extractor from a file; returns the network and the file's SHA-256."""
    cached_name = f"{name}-{CLIP_FILES[name]['hash']}.pt" if name in CLIP_URLS else None
    file = weights or cached_or_fetched(
        _URLS[name],
        wanted=f"weights of {name}",
        instead=f"or set fid.weights to the file, {_ALTERNATIVE}",
        name=cached_name,
    )
    if not file.is_file():
        raise CheckpointError(f"fid.weights: {file}: no such file")
    if name not in CLIP_URLS:
        content: Any = _resaved(_checked_state(name, file))
    elif file_sum(file) == CLIP_FILES[name]["hash"]:
        content = str(file)
    else:
        raise CheckpointError(
            f"{file}: not OpenAI's file of {name}; TorchScript contains code, so other files are refused: "
            f"download {CLIP_URLS[name]} (SHA-256 {CLIP_FILES[name]['hash']})"
        )
    return _create(name, file, feature_extractor_weights_path=content), file_sum(file)


def _checked_state(name: str, file: Path) -> dict[str, Tensor]:
    """Read a state dict safely and check that it fits the network."""
    try:
        state = load_file(file) if has_safetensors(file) else read_torch_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or truncated ({one_line(error)})") from None
    if (code := code_in(state)) is not None:
        raise CheckpointError(f"{file}: {code}")
    pairs = state.items() if isinstance(state, Mapping) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in pairs):
        raise CheckpointError(f"{file}: not the weights of {name}: expected a state dict")
    with torch.device("meta"):
        layout = vgg16() if name == "vgg16" else BareInception()
    found = fit(layout, state)
    problems = [
        *(
            f"{key} is {tuple(found.state[key].shape)}, expected {tuple(found.own[key].shape)}"
            for key in found.other_shape
        ),
        *(f"{key} is missing" for key in found.missing),
        *(f"{key} is unknown" for key in found.unexpected),
    ]
    if problems:
        more = f", and {len(problems) - 1} more names or shapes differ" if len(problems) > 1 else ""
        raise CheckpointError(f"{file}: not the weights of {name}: {problems[0]}{more}")
    # BatchNorm counters that an older file lacks are still on the meta device; the network creates its own.
    checked = {key: tensor for key, tensor in found.state.items() if not tensor.is_meta}
    check_finite(file, checked, {})
    return checked


def _load_dinov2(name: str, weights: Path | None) -> tuple[FeatureExtractorBase, str]:
    """Load an extractor from torch.hub; returns the network and the fingerprint of its state."""
    if weights is not None:
        raise RecipeError(
            f"fid.weights: {name} takes no file, since torch-fidelity loads it from torch.hub: remove fid.weights"
        )
    cache = Path(torch.hub.get_dir())
    with ExitStack() as stack, patience():
        with suppress(OSError):  # no rank can download into a read-only folder, so none needs the lock
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(cache / ".facebookresearch_dinov2_main.lock"))
        network = _create(
            name,
            cache,
            f"; put facebookresearch_dinov2_main into {cache} and its weights into {cache}/checkpoints, {_ALTERNATIVE}",
        )
    return network, state_fingerprint(network)


def _create(name: str, origin: Path, advice: str = "", **options: Any) -> FeatureExtractorBase:
    """Create torch-fidelity's network with its default layer for FID."""
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
    try:
        # Its initialisation must not advance the caller's random generator.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about TorchScript, which is torch-fidelity's choice
            return create_feature_extractor(name, [layer], cuda=False, verbose=False, **options)
    except Exception as error:  # downloaded code and TorchScript can raise anything
        raise CheckpointError(f"{origin}: cannot load {name} ({one_line(error)}){advice}") from None


def _resaved(state: Mapping[str, Tensor]) -> io.BytesIO:
    content = io.BytesIO()
    torch.save(dict(state), content)
    content.seek(0)
    return content
