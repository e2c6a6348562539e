"""Weights that torchvision and timm publish.

Their metadata is stored in `Weights.details`:

    classes        names in the order of the logits
    class_ids      WordNet ids in the same order, for models with ImageNet's classes
    normalization  three means and three standard deviations of pixels in [0, 1]
    preprocessing  resize_px of the shorter side, crop_px of the central square, interpolation; crop_mode if timm
                   prepares images otherwise (``squash``: distorts the aspect ratio, ``border``: pads, not crops)
    source         library, model and tag
    url            URL of the file; license or recipe_url, if the library has them
    assumed        true if all of this is inferred from the model's name
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from w2skd.errors import CheckpointError, RecipeError, suggest
from w2skd.models.from_timm import import_timm
from w2skd.models.from_torchvision import import_torchvision_models
from w2skd.models.names import PUBLISHERS
from w2skd.recipe.schema import published_weights
from w2skd.weights.fetch import cached_or_fetched, file_name, hub_folder, one_line, sum_differs
from w2skd.weights.imagenet import imagenet_ids
from w2skd.weights.load import Weights, load_weights

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

_OWN_FILE = "use your own file (teacher.checkpoint; evaluate: --checkpoint)"


class _Published(NamedTuple):
    """Weights that a library publishes.

    Attributes:
        details: metadata, see the module.
        url: URL of the file; None if it is only on the Hugging Face Hub.
        hub: repository on the Hugging Face Hub, if the file is there.
        others: tag -> URL of other weights of the same model.
    """

    details: dict[str, Any]
    url: str | None
    hub: str | None = None
    others: Mapping[str, str] = MappingProxyType({})


def open_weights(checkpoint: Path, model: str, key: str | None = None) -> Weights:
    """Read the weights that a recipe's checkpoint denotes: a run's, a file's, or published ones.

    A bare file with 1,000 classes for a model of torchvision or timm is assumed to be ImageNet's, see
    `assume_imagenet`.

    Args:
        checkpoint: as in a recipe: a path, ``pretrained`` or ``pretrained:TAG``.
        model: the recipe's name of the model.
        key: see `w2skd.weights.load.load_weights`.

    Raises:
        RecipeError: there are no such published weights.
        CheckpointError: the file is missing, damaged or unsafe, or cannot be downloaded.
    """
    published, tag = published_weights(checkpoint)
    if published:
        return load_pretrained(model, tag)
    weights = load_weights(checkpoint, key)
    bare = weights.recipe is None and "classes" not in weights.details and model.startswith(PUBLISHERS)
    if bare and any(tensor.shape == (len(imagenet_ids()),) for tensor in weights.state.values()):  # the head's bias
        return assume_imagenet(weights, model)
    return weights


def load_pretrained(model: str, tag: str | None = None) -> Weights:
    """Read weights that a library publishes, from its cache or else its server.

    Args:
        model: ``torchvision:<name>`` or ``timm:<name>``; timm's name may contain the tag, as in ``resnet18.a1_in1k``.
        tag: tag of the weights, such as ``IMAGENET1K_V1``; None is the library's default.

    Returns:
        The weights under the model's own tensor names, with their metadata as details.

    Raises:
        RecipeError: no such model or tag, weights without a classifier, or timm is not installed.
        CheckpointError: the file is not cached and cannot be downloaded (the message explains how to provide it), or is
            damaged.
    """
    library, _, name = model.partition(":")
    if library == "torchvision":
        published = _of_torchvision(name, tag)
        weights = load_weights(_cached_or_fetched(published))
    elif library == "timm":
        published = _of_timm(name, tag)
        weights = _converted_by_timm(name, tag, load_weights(_file_of_timm(published)))
    else:
        raise RecipeError(f"{model}: has no published weights; models that can have them: {', '.join(PUBLISHERS)}")
    return replace(weights, details=published.details)


def assume_imagenet(weights: Weights, model: str) -> Weights:
    """Add the metadata that a bare file of a model with ImageNet's 1,000 classes lacks.

    A file that torchvision publishes is recognised by its name and checksum and gets its own metadata. Any other file
    gets the classes and preprocessing of the library's default weights, and ``assumed`` is set.

    Args:
        weights: weights with 1,000 classes; details that they have take precedence.
        model: ``torchvision:<name>`` or ``timm:<name>``.

    Raises:
        RecipeError: no such model, or timm is not installed.
    """
    library, _, name = model.partition(":")
    assert f"{library}:" in PUBLISHERS, model
    tag = _tag_of_file(name, weights.path) if library == "torchvision" else None
    details = dict((_of_torchvision if library == "torchvision" else _of_timm)(name, tag).details)
    if len(details.get("class_ids", ())) != len(imagenet_ids()):  # the default weights have a larger ImageNet's classes
        details |= {"classes": list(_imagenet_names()), "class_ids": list(imagenet_ids())}
    if tag is None:
        details = {key: value for key, value in details.items() if key not in ("url", "license", "recipe_url")}
        details |= {"source": f"assumed to be trained as {details['source']}", "assumed": True}
    return replace(weights, details={**details, **weights.details})


def _of_torchvision(name: str, tag: str | None) -> _Published:
    tags = import_torchvision_models(name).get_model_weights(name)
    chosen = tag or "DEFAULT"
    if chosen not in tags.__members__:
        raise RecipeError(
            f"torchvision has no weights {chosen!r} of {name}{suggest(chosen, tags.__members__)}; "
            f"it has {', '.join(each.name for each in tags) or 'none'}"
        )
    found = tags[chosen]
    classes = found.meta.get("categories")
    if classes is None:
        raise RecipeError(f"torchvision's weights {found.name} of {name} have no classifier: choose others")
    assert len(classes) == len(imagenet_ids()), f"{found}: {len(classes)} classes"
    preset = found.transforms()
    # The published weights of these two want the images renormalised, which w2skd's builds of the models never do.
    halves = name in ("googlenet", "inception_v3")
    details = {
        "classes": list(classes),
        "class_ids": list(imagenet_ids()),
        "normalization": [0.5] * 6 if halves else [*preset.mean, *preset.std],
        "preprocessing": {
            "resize_px": preset.resize_size[0],
            "crop_px": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
        },
        "source": f"torchvision {name} {found.name}",
        "url": found.url,
        **({"recipe_url": found.meta["recipe"]} if "recipe" in found.meta else {}),
    }
    others = {each.name: each.url for each in tags if each is not found and each.meta.get("categories") is not None}
    return _Published(details, found.url, others=others)


def _imagenet_names() -> tuple[str, ...]:
    from torchvision import models

    return tuple(models.get_model_weights("resnet18").DEFAULT.meta["categories"])


def _tag_of_file(name: str, file: Path) -> str | None:
    """Return the tag of torchvision's published weights that a file's name and checksum match, if any."""
    for weights in import_torchvision_models(name).get_model_weights(name):
        if file_name(weights.url) == file.name and sum_differs(file) is None:
            return str(weights.name)
    return None


def _of_timm(name: str, tag: str | None) -> _Published:
    arch, tag = _split(name, tag)
    timm = import_timm(arch)
    configs = timm.models.get_arch_pretrained_cfgs(arch)
    tags = [each.partition(".")[2] for each, config in configs.items() if config.has_weights and config.num_classes]
    if tag is not None and f"{arch}.{tag}" not in configs:
        raise RecipeError(
            f"timm has no weights {tag!r} of {arch}{suggest(tag, tags)}; it has {', '.join(tags) or 'none'}"
        )
    config = timm.get_pretrained_cfg(arch if tag is None else f"{arch}.{tag}")
    if config is None or not config.has_weights:
        raise RecipeError(f"timm publishes no weights of {arch}{f' {tag}' if tag else ''}: {_OWN_FILE}")
    if not config.num_classes:
        raise RecipeError(
            f"timm's weights {config.tag} of {arch} have no classifier; weights with one: {', '.join(tags) or 'none'}"
        )
    crop_px = config.input_size[-1]
    details = {
        **_classes_of_timm(timm, config),
        "normalization": [*config.mean, *config.std],
        "preprocessing": {
            "resize_px": math.floor(crop_px / config.crop_pct),
            "crop_px": crop_px,
            "interpolation": config.interpolation,
            **({"crop_mode": config.crop_mode} if config.crop_mode != "center" else {}),
        },
        "source": f"timm {arch} {config.tag}" if config.tag else f"timm {arch}",
        "url": f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url,
        **({"license": config.license} if config.license else {}),
    }
    return _Published(details, config.url or None, config.hf_hub_id)


def _split(name: str, tag: str | None) -> tuple[str, str | None]:
    arch, _, inside = name.partition(".")
    if tag is not None and inside and tag != inside:
        raise RecipeError(f"timm:{name} names other weights than the tag {tag!r}: remove one of them")
    return arch, tag or inside or None


def _classes_of_timm(timm: Any, config: Any) -> dict[str, list[str]]:
    if config.num_classes == len(imagenet_ids()):
        return {"classes": list(_imagenet_names()), "class_ids": list(imagenet_ids())}
    subset = timm.data.infer_imagenet_subset({"num_classes": config.num_classes})
    if subset is None:
        return {}
    info = timm.data.ImageNetInfo(subset)
    return {"classes": info.label_descriptions(), "class_ids": info.label_names()}


def _converted_by_timm(name: str, tag: str | None, weights: Weights) -> Weights:
    """Convert a published state dict to timm's: some are in their authors' format, with other names or shapes."""
    arch, tag = _split(name, tag)
    timm = import_timm(arch)
    overlay = {"state_dict": dict(weights.state)}
    try:
        with torch.random.fork_rng(devices=[]):  # initialising the model must not change the caller's random draws
            model = timm.create_model(arch, pretrained=True, pretrained_cfg=tag, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{weights.path}: not the weights of timm's {arch}: {reason[:200]}") from None
    return replace(weights, state=model.state_dict())


def _file_of_timm(published: _Published) -> Path:
    if published.hub is None:
        return _cached_or_fetched(published)
    import huggingface_hub as hub

    repository, _, revision = published.hub.partition("@")
    cache = hub.constants.HF_HUB_CACHE
    for file in _HUB_FILES:
        found = hub.try_to_load_from_cache(repository, file, cache_dir=cache, revision=revision or None)
        if isinstance(found, str):
            return Path(found)
    reason = "it has none of the usual files"
    for file in _HUB_FILES:
        try:
            with _errors_only("huggingface_hub"):
                return Path(hub.hf_hub_download(repository, file, cache_dir=cache, revision=revision or None))
        except hub.errors.RemoteEntryNotFoundError:  # the repository exists without this file
            continue
        except Exception as error:  # errors of the hub or of its HTTP library, or a full disk
            reason = one_line(error)
            break
    raise CheckpointError(
        f"{published.details['source']}: {repository} of the Hugging Face Hub is not in {cache}, and downloading it "
        f"failed ({reason}); run `hf download {repository}` on another machine and copy what it adds to its cache into "
        f"that folder (set by HF_HOME), or {_OWN_FILE}"
    )


def _cached_or_fetched(published: _Published) -> Path:
    assert published.url is not None, published.details["source"]
    folder = hub_folder()
    here = [f"pretrained:{tag}" for tag, other in published.others.items() if (folder / file_name(other)).exists()]
    instead = f"or {_OWN_FILE}" + (f"; cached weights of the same model: {', '.join(here)}" if here else "")
    return cached_or_fetched(published.url, wanted=published.details["source"], instead=instead)


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Suppress a library's warnings about each attempt; the last failure is reported as an error."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
