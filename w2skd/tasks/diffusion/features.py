"""The networks in whose features images are compared: torch-fidelity's own, and classifiers of ours among them.

torch-fidelity reads its weights in a way that could run code. So files are read safely and held against the network's
layout here, and it is handed a copy of what was read. Two families of its extractors are kept as it knows them, and
are trusted as it trusts them:

    clip-*      TorchScript files; only OpenAI's own are loaded, known by their SHA-256
    dinov2-*    code and weights that torch's hub fetches from facebookresearch/dinov2, or has fetched before

Legend: n images, H and W px, D features.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP_FILES
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor
from torchvision.models import VGG16_Weights, vgg16

from w2skd.errors import CheckpointError, RecipeError
from w2skd.weights.fetch import alone, cached_or_fetched, file_sum, one_line, patience
from w2skd.weights.fit import fit
from w2skd.weights.unpickle import load_pt

OURS = "w2skd-"
"""What the names begin with under which torch-fidelity knows classifiers of ours."""

_LAYER = "penultimate"

_USUAL_PX = (8, 16, 28, 32, 48, 64, 96, 128, 192, 224, 256, 384)

_WITHOUT = (
    "or compare in the features of a classifier trained with w2skd (fid.extractor: checkpoint:RUN), which needs "
    "nothing from the network"
)
_INSTEAD = f"or give the file (fid.weights), {_WITHOUT}"


class Extractor:
    """Images in, features out: always in float32 and without gradients, whatever the caller's modes are.

    Args:
        network: one of torch-fidelity's kind, with a single layer of features; it is moved and frozen in place.
        name: the recipe's word for it.
        weights: SHA-256 of its weights, in hex.
        dimensions: D; None to find out.
        device: where it runs.
        batch_size: images of one forward; changes speed, memory and the last digits only.
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
    def registered_name(self) -> str:
        """Under which torch-fidelity knows it, the same wherever its weights come from."""
        return str(self._network.get_name())

    def __call__(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: uint8 [n, 3, H, W], on any device.

        Returns:
            float32 [n, D] on the CPU, in the same order.

        Raises:
            CheckpointError: the network is a classifier that has no features of that form.
        """
        assert images.dtype == torch.uint8, images.dtype
        assert images.ndim == 4 and images.shape[1] == 3, tuple(images.shape)  # noqa: PT018 (the second needs the first)
        parts = []
        # Outside inference mode, since its tensors could not be used everywhere.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            for first in range(0, len(images), self._batch_size):
                (features,) = self._network(images[first : first + self._batch_size].to(self._device))
                parts.append(features.float().cpu())
            return torch.cat(parts) if parts else torch.empty(0, self.dimensions)


class BareInception(FeatureExtractorInceptionV3):  # type: ignore[misc]
    """``inception-v3-compat`` with the weights that modules are born with: the layout of a file of its weights."""

    def __init__(self) -> None:
        super().__init__("inception-v3-compat", ["2048"], feature_extractor_weights_path=_resaved({}))

    def load_state_dict(self, state: Mapping[str, Any], *options: Any, **more: Any) -> Any:
        """As every module's, but for the empty state that torch-fidelity's constructor loads, see above."""
        return super().load_state_dict(state, *options, **more) if state or more else None


def open_extractor(name: str, weights: Path | None, *, device: torch.device | str, batch_size: int) -> Extractor:
    """One of torch-fidelity's feature extractors, in the layer that it takes for FID.

    Args:
        name: torch-fidelity's, see `w2skd.tasks.diffusion.recipe.FEATURE_EXTRACTORS`.
        weights: file of its weights: a state dict as ``.pth`` or ``.safetensors``, or OpenAI's own file of a CLIP;
            None takes torch's cache, else the network.
        device: where it runs.
        batch_size: images of one forward.

    Raises:
        RecipeError: this extractor takes no file.
        CheckpointError: the weights are missing, damaged, unsafe, or another network's.
    """
    if name.startswith("dinov2"):
        return _open_dinov2(name, weights, device, batch_size)
    url = CLIP_URLS[name] if name in CLIP_URLS else _URLS[name]
    cached_name = f"{name}-{CLIP_FILES[name]['hash']}.pt" if name in CLIP_URLS else None
    file = weights or cached_or_fetched(url, wanted=f"weights of {name}", instead=_INSTEAD, name=cached_name)
    if not file.is_file():
        raise CheckpointError(f"fid.weights: {file}: no such file")
    content = _checked_clip(name, file) if name in CLIP_URLS else _resaved(_checked_state(name, file))
    return Extractor(
        _created(name, file, feature_extractor_weights_path=content),
        name=name,
        weights=file_sum(file),
        device=device,
        batch_size=batch_size,
    )


def classifier_extractor(
    model: nn.Module,
    *,
    name: str,
    fingerprint: str,
    prepare: Callable[[Tensor], Tensor],
    device: torch.device | str,
    batch_size: int,
    size_px: int | None = None,
) -> Extractor:
    """The penultimate features of a classifier, known to torch-fidelity under the name ``w2skd-<fingerprint>``.

    These are what its last linear layer, in the order of its modules, takes in. It sees one image at once, so that what
    is of no use is refused before anything is trained.

    Args:
        model: from prepared images to logits; it is moved to the device and frozen in place.
        name: the recipe's word for it.
        fingerprint: of its weights, in hex. Two calls with the same one must mean the same features.
        prepare: from pixels, uint8 [n, 3, H, W] on the device, to what the model takes.
        device: where it runs.
        batch_size: images of one forward.
        size_px: side of the images that it will see; None looks for a usual one that it takes.

    Raises:
        CheckpointError: it has no linear layer; or, of an image of that size, no finite features of the right form.
    """
    linears = [(where, layer) for where, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linears:
        raise CheckpointError(f"{name}: has no linear layer, so there are no features before it to compare images in")
    where, last = linears[-1]

    class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]
        """What torch-fidelity makes an extractor from: it calls a class, so this one holds the model."""

        def __init__(self, name: str, features_list: list[str], **_: Any):
            super().__init__(name, features_list)
            self.model = model

        def forward(self, pixels: Tensor) -> tuple[Tensor]:
            taken: list[Tensor] = []
            hook = last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
            try:
                self.model(prepare(pixels))
            finally:
                hook.remove()
            if len(taken) != 1 or taken[0].ndim != 2:
                found = f"took {tuple(taken[0].shape)}" if taken else "was not called"
                raise CheckpointError(f"{told}: its last linear layer, {where}, {found}, not one row an image")
            return (taken[0].float(),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return (_LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return _LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    told, registered = name, f"{OURS}{fingerprint}"
    FEATURE_EXTRACTORS_REGISTRY.pop(registered, None)
    register_feature_extractor(registered, ClassifierFeatures)
    extractor = Extractor(
        create_feature_extractor(registered, [_LAYER], cuda=False, verbose=False),
        name=name,
        weights=fingerprint,
        dimensions=last.in_features,
        device=device,
        batch_size=batch_size,
    )
    _look(extractor, size_px)
    return extractor


def _look(extractor: Extractor, size_px: int | None) -> None:
    """Let a classifier see one image.

    Raises:
        CheckpointError: its features are of another form or not finite, or it takes no image of that size.
    """
    for side_px in _USUAL_PX if size_px is None else (size_px,):
        # Not black all over: some networks scale each image by its spread.
        image = (torch.arange(3 * side_px**2) % 256).to(torch.uint8).view(1, 3, side_px, side_px)
        try:
            features = extractor(image)
        except CheckpointError:
            raise
        except Exception as error:  # libraries and plug-ins raise whatever they like
            if size_px is None:
                continue
            said = f"{extractor.name}: cannot take images of {size_px} px ({one_line(error)})"
            raise CheckpointError(said) from None
        if not features.isfinite().all():
            raise CheckpointError(f"{extractor.name}: the features of an image of {side_px} px are not finite")
        return


_URLS: Mapping[str, str] = {"inception-v3-compat": URL_INCEPTION_V3, "vgg16": VGG16_Weights.IMAGENET1K_V1.url}


def _checked_state(name: str, file: Path) -> dict[str, Tensor]:
    """A state dict that fits the network, read safely."""
    try:
        state = load_file(file) if file.suffix == ".safetensors" else load_pt(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or cut off ({one_line(error)})") from None
    pairs = state.items() if isinstance(state, Mapping) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in pairs):
        raise CheckpointError(f"{file}: not the weights of {name}: a state dict was expected")
    with torch.device("meta"):
        layout = vgg16() if name == "vgg16" else BareInception()
    found = fit(layout, state)
    problem = None
    if found.other_shape:
        first = found.other_shape[0]
        problem = f"{first} is {tuple(found.state[first].shape)}, expected {tuple(found.own[first].shape)}"
    elif found.missing or found.unexpected:
        problem = f"{found.missing[0]} is missing" if found.missing else f"{found.unexpected[0]} is unknown"
    if problem is not None:
        wrong = len(found.missing) + len(found.unexpected) + len(found.other_shape)
        more = f", and {wrong - 1} more names or shapes differ" if wrong > 1 else ""
        raise CheckpointError(f"{file}: not the weights of {name}: {problem}{more}")
    broken = [key for key, tensor in found.state.items() if not tensor.is_meta and not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{file}: damaged: {broken[0]} is not finite")
    return {key: tensor for key, tensor in found.state.items() if not tensor.is_meta}  # BatchNorm makes its counters


def _checked_clip(name: str, file: Path) -> str:
    """The file itself, if it is OpenAI's own: TorchScript carries a program."""
    expected = CLIP_FILES[name]["hash"]
    if file_sum(file) != expected:
        raise CheckpointError(
            f"{file}: not OpenAI's file of {name}, whose SHA-256 is {expected}; another one is not loaded, since it "
            f"carries a program; fetch {CLIP_URLS[name]}"
        )
    return str(file)


def _open_dinov2(name: str, weights: Path | None, device: torch.device | str, batch_size: int) -> Extractor:
    if weights is not None:
        raise RecipeError(
            f"fid.weights: {name} takes none: torch-fidelity has its network and weights from torch's hub; leave it out"
        )
    cache = Path(torch.hub.get_dir())
    with ExitStack() as stack, patience():
        with suppress(OSError):  # into a folder that cannot be written, no other rank fetches either
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(cache / ".facebookresearch_dinov2_main.lock"))
        network = _created(
            name, cache, f"it needs facebookresearch_dinov2_main in {cache} and its weights in {cache}/checkpoints"
        )
    return Extractor(network, name=name, weights=_state_sum(network), device=device, batch_size=batch_size)


def _created(name: str, origin: Path, hint: str = "", **options: Any) -> FeatureExtractorBase:
    """torch-fidelity's network, in the layer that it takes for FID."""
    layer = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
    try:
        # What it is initialised with must not disturb the caller's draws.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of TorchScript, which is torch-fidelity's choice
            return create_feature_extractor(name, [layer], cuda=False, verbose=False, **options)
    except Exception as error:  # fetched code, or TorchScript: about anything
        said = f"{origin}: {name} cannot be made of it ({one_line(error)})"
        raise CheckpointError(f"{said}; {hint}, {_WITHOUT}" if hint else said) from None


def _resaved(state: Mapping[str, Tensor]) -> io.BytesIO:
    content = io.BytesIO()
    torch.save(dict(state), content)
    content.seek(0)
    return content


def _state_sum(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
