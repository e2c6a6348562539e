"""Features of a classifier that was trained with w2skd: the inputs of its last linear layer.

Shapes: n images, H and W px, D features.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from w2skd.data.images import Normalization
from w2skd.data.normalize import Normalizer
from w2skd.errors import CheckpointError
from w2skd.method.teacher import state_fingerprint
from w2skd.models.catalog import build_classifier
from w2skd.tasks.diffusion.features import Extractor
from w2skd.tasks.diffusion.recipe import UNTRAINED
from w2skd.weights.fetch import one_line
from w2skd.weights.load import load_into, load_weights


class ClassifierFeatures(FeatureExtractorBase):  # type: ignore[misc]
    """The inputs of a classifier's last linear layer (in module order), behind torch-fidelity's interface.

    Args:
        title: the classifier's name in records and error messages.
        model: maps prepared images to logits.
        prepare: maps pixels, uint8 [n, 3, H, W] on the model's device, to prepared images.
        fingerprint: hash of the weights; equal fingerprints must mean equal features.

    Attributes:
        dimensions: D.

    Raises:
        CheckpointError: the classifier has no linear layer.
    """

    def __init__(self, title: str, model: nn.Module, prepare: Callable[[Tensor], Tensor], fingerprint: str):
        super().__init__(f"w2skd-{fingerprint}", self.get_provided_features_list())
        linears = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        if not linears:
            raise CheckpointError(f"{title}: has no linear layer whose inputs could serve as features")
        self.title = title
        self.model = model
        self.prepare = prepare
        self.fingerprint = fingerprint
        self.layer, last = linears[-1]
        self.dimensions = last.in_features

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """Return the features, float32 [n, D], of uint8 [n, 3, H, W]."""
        inputs: list[Tensor] = []
        hook = self.model.get_submodule(self.layer).register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        try:
            self.model(self.prepare(pixels))
        finally:
            hook.remove()
        if len(inputs) != 1 or inputs[0].ndim != 2:
            found = f"got {tuple(inputs[0].shape)}" if inputs else "was not called"
            raise CheckpointError(f"{self.title}: its last linear layer, {self.layer}, {found}, not one row per image")
        return (inputs[0].float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        """Name the only feature layer."""
        return ("penultimate",)


def classifier_extractor(
    features: ClassifierFeatures, *, device: torch.device | str, batch_size: int, size_px: int
) -> Extractor:
    """Make an extractor of a classifier's features and try it on one image.

    Args:
        features: the classifier, which is moved and frozen in place.
        device: where it runs.
        batch_size: images per forward pass.
        size_px: side of the images that it will see.

    Raises:
        CheckpointError: the classifier rejects images of that size, or its features are non-finite or not one vector
            per image.
    """
    extractor = Extractor(
        features,
        name=features.title,
        weights=features.fingerprint,
        dimensions=features.dimensions,
        device=device,
        batch_size=batch_size,
    )
    # Not uniform, because some networks divide each image by its standard deviation.
    image = (torch.arange(3 * size_px**2) % 256).to(torch.uint8).view(1, 3, size_px, size_px)
    try:
        found = extractor(image)
    except CheckpointError:
        raise
    except Exception as error:  # libraries and plug-ins can raise anything
        raise CheckpointError(f"{features.title}: cannot process images of {size_px} px ({one_line(error)})") from None
    if not found.isfinite().all():
        raise CheckpointError(f"{features.title}: has non-finite features for an image of {size_px} px")
    return extractor


def read_classifier(run: Path, *, size_px: int, device: torch.device) -> ClassifierFeatures:
    """Read a classifier that was trained with w2skd.

    Args:
        run: its run directory or checkpoint.
        size_px: side of the images that it will see, resized to its own size where that differs.
        device: where it will run.

    Raises:
        CheckpointError: there is none, or it is not a classifier trained with w2skd.
    """
    try:
        weights = load_weights(run)
    except CheckpointError as error:
        raise CheckpointError(f"fid.extractor: {error}; give the run of a classifier trained with w2skd") from None
    recipe, name = weights.recipe, weights.model_name
    if recipe is None or name is None or recipe.get("task") != "classification":
        raise CheckpointError(f"{weights.path}: fid.extractor: not a classifier trained with w2skd")
    data = recipe["data"]
    own_px = data["image_size"] or (28 if data["source"] == "fashion_mnist" else 32)
    model = build_classifier(name, len(weights.details["classes"]), own_px)
    load_into(model, weights, expected=name)
    values = weights.details["normalization"]
    normalize = Normalizer(Normalization(tuple(values[:3]), tuple(values[3:])), device, channels_last=False)

    def prepare(pixels: Tensor) -> Tensor:
        images = normalize(pixels)
        if own_px == size_px:
            return images
        return functional.interpolate(images, (own_px, own_px), mode="bicubic", antialias=True, align_corners=False)

    return ClassifierFeatures(f"checkpoint:{name}", model, prepare, state_fingerprint(weights.state))


def untrained_classifier(size_px: int, device: torch.device) -> ClassifierFeatures:
    """Build a small classifier with random weights, the same in every process, for smoke tests.

    Args:
        size_px: side of the images that it will see.
        device: where it will run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_classifier("small_cnn_weak", 10, size_px)
    normalize = Normalizer(Normalization((0.5,) * 3, (0.5,) * 3), device, channels_last=False)
    return ClassifierFeatures(UNTRAINED, model, normalize, state_fingerprint(model.state_dict()))
