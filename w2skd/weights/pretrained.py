"""Weights that torchvision and timm publish.

What a library knows of its weights comes as `Weights.details`:

    classes        names, in the order of the logits
    class_ids      WordNet's ids in the same order, for models of ImageNet's classes
    normalization  three means and three standard deviations of pixels scaled to [0, 1]
    preprocessing  resize_px of the shorter side, crop_px of the square in its middle, interpolation; crop_mode where
                   timm prepares images otherwise (``squash``: no heed of proportions, ``border``: nothing cut off)
    source         library, model and tag, for people
    url            of the file; license or recipe_url, if the library tells them
    assumed        true where nothing but the model's name speaks for all this
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
from w2skd.models.names import PUBLISHERS
from w2skd.recipe.schema import published_weights
from w2skd.weights.fetch import cached_or_fetched, file_name, hub_folder, one_line, sum_differs
from w2skd.weights.imagenet import imagenet_ids
from w2skd.weights.load import Weights, load_weights

LIBRARIES = tuple(publisher.removesuffix(":") for publisher in PUBLISHERS)

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

_INSTEAD = "or give a file of your own (teacher.checkpoint; evaluate: --checkpoint)"


class _Published(NamedTuple):
    """Weights that a library publishes.

    Attributes:
        name: library, model and tag, for people.
        url: of the file; None where there is a `hub` only.
        hub: repository on the Hugging Face Hub, if the file is there.
        details: see the module.
        others: tag -> URL of the same model's other weights.
    """

    name: str
    url: str | None
    hub: str | None
    details: dict[str, Any]
    others: Mapping[str, str] = MappingProxyType({})


def open_weights(checkpoint: Path, model: str) -> Weights:
    """The weights that a checkpoint means for a model: those of a run or file, or published ones.

    A bare file of 1,000 classes for a model of torchvision or timm is taken for ImageNet's, see `assume_imagenet`.

    Args:
        checkpoint: as a recipe names it: a path, ``pretrained`` or ``pretrained:TAG``.
        model: the recipe's name for it.

    Raises:
        RecipeError: no such published weights.
        CheckpointError: the file is missing, damaged or unsafe, or can't be fetched.
    """
    published, tag = published_weights(checkpoint)
    if published:
        return load_pretrained(model, tag)
    weights = load_weights(checkpoint)
    bare = weights.recipe is None and "classes" not in weights.details and model.startswith(PUBLISHERS)
    if bare and any(tensor.shape == (len(imagenet_ids()),) for tensor in weights.state.values()):  # the head's bias
        return assume_imagenet(weights, model)
    return weights


def load_pretrained(model: str, tag: str | None = None) -> Weights:
    """Read weights that a library publishes: from its cache on this machine, else from its server.

    Args:
        model: ``torchvision:<name>`` or ``timm:<name>``; timm's name may hold the tag, as in ``resnet18.a1_in1k``.
        tag: which weights of that model, such as ``IMAGENET1K_V1``; None takes the library's default.

    Returns:
        The weights under the model's own names, with what is known of them as details.

    Raises:
        RecipeError: no such model or tag, weights without a classifier, or timm is not installed.
        CheckpointError: the file isn't here and can't be fetched (the message says how to bring it), or is damaged.
    """
    library, _, name = model.partition(":")
    if library == "torchvision":
        published = _of_torchvision(name, tag)
        weights = load_weights(_cached_or_fetched(published))
    elif library == "timm":
        published = _of_timm(name, tag)
        weights = _translated_by_timm(name, tag, load_weights(_file_of_timm(published)))
    else:
        raise RecipeError(f"{model}: no library publishes weights of it; known are {', '.join(LIBRARIES)}")
    return replace(weights, details=published.details)


def assume_imagenet(weights: Weights, model: str) -> Weights:
    """Fill in what a bare file of a model with ImageNet's 1,000 classes does not say.

    A file that is byte for byte one of torchvision's published ones is recognised by its name and its sum, and gets
    what is true of it. Otherwise classes and preparation of images are those of the library's default weights, and
    ``assumed`` is set.

    Args:
        weights: with 1,000 classes; what its details say already stays.
        model: ``torchvision:<name>`` or ``timm:<name>``.

    Raises:
        RecipeError: no such model, or timm is not installed.
    """
    library, _, name = model.partition(":")
    assert library in LIBRARIES, model
    tag = _tag_of_file(name, weights.path) if library == "torchvision" else None
    details = dict((_of_torchvision if library == "torchvision" else _of_timm)(name, tag).details)
    if len(details.get("class_ids", ())) != len(imagenet_ids()):  # its default weights are of a larger ImageNet
        details |= {"classes": list(_imagenet_names()), "class_ids": list(imagenet_ids())}
    if tag is None:
        details = {key: value for key, value in details.items() if key not in ("url", "license", "recipe_url")}
        details |= {"source": f"assumed to be trained as {details['source']}", "assumed": True}
    return replace(weights, details={**details, **weights.details})


def _of_torchvision(name: str, tag: str | None) -> _Published:
    from torchvision import models  # takes a while, and not every experiment needs it

    known = models.list_models(module=models)
    if name not in known:
        raise RecipeError(f"torchvision has no classifier {name!r}{suggest(name, known)}")
    tags = models.get_model_weights(name)
    chosen = tag or "DEFAULT"
    if chosen not in tags.__members__:
        raise RecipeError(
            f"torchvision has no weights {chosen!r} of {name}{suggest(chosen, tags.__members__)}; "
            f"it has {', '.join(each.name for each in tags) or 'none'}"
        )
    found = tags[chosen]
    classes = found.meta.get("categories")
    if classes is None:
        raise RecipeError(f"torchvision's weights {found.name} of {name} have no classifier: choose other ones")
    preset = found.transforms()
    # These two models can renormalise images by themselves, which their published weights want and ours never do.
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
    assert len(classes) == len(imagenet_ids()), f"{found}: {len(classes)} classes"
    others = {each.name: each.url for each in tags if each is not found and each.meta.get("categories") is not None}
    return _Published(details["source"], found.url, None, details, others)


def _imagenet_names() -> tuple[str, ...]:
    from torchvision import models

    return tuple(models.get_model_weights("resnet18").DEFAULT.meta["categories"])


def _tag_of_file(name: str, file: Path) -> str | None:
    """Which of torchvision's published weights a file is, judged by its name and the sum that is a part of it."""
    from torchvision import models

    for weights in models.get_model_weights(name):
        if file_name(weights.url) == file.name and sum_differs(file) is None:
            return str(weights.name)
    return None


def _of_timm(name: str, tag: str | None) -> _Published:
    timm = _import_timm()
    arch, tag = _split(name, tag)
    if not timm.is_model(arch):
        raise RecipeError(f"timm has no model {arch!r}{suggest(arch, timm.list_models())}")
    configs = timm.models.get_arch_pretrained_cfgs(arch)
    tags = [each.partition(".")[2] for each, config in configs.items() if config.has_weights and config.num_classes]
    if tag is not None and f"{arch}.{tag}" not in configs:
        raise RecipeError(
            f"timm has no weights {tag!r} of {arch}{suggest(tag, tags)}; it has {', '.join(tags) or 'none'}"
        )
    config = timm.get_pretrained_cfg(arch if tag is None else f"{arch}.{tag}")
    if config is None or not config.has_weights:
        raise RecipeError(f"timm publishes no weights of {arch}{f' {tag}' if tag else ''}: {_INSTEAD[3:]}")
    if not config.num_classes:
        raise RecipeError(
            f"timm's weights {config.tag} of {arch} have no classifier; those with one: {', '.join(tags) or 'none'}"
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
    return _Published(details["source"], config.url or None, config.hf_hub_id, details)


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise RecipeError("timm is not installed, which a model of it needs: pip install timm") from None
    return timm


def _split(name: str, tag: str | None) -> tuple[str, str | None]:
    arch, _, inside = name.partition(".")
    if tag is not None and inside and tag != inside:
        raise RecipeError(f"timm:{name} names other weights than the tag {tag!r}: leave one of them out")
    return arch, tag or inside or None


def _classes_of_timm(timm: Any, config: Any) -> dict[str, list[str]]:
    if config.num_classes == len(imagenet_ids()):
        return {"classes": list(_imagenet_names()), "class_ids": list(imagenet_ids())}
    subset = timm.data.infer_imagenet_subset({"num_classes": config.num_classes})
    if subset is None:
        return {}
    info = timm.data.ImageNetInfo(subset)
    return {"classes": info.label_descriptions(), "class_ids": info.label_names()}


def _translated_by_timm(name: str, tag: str | None, weights: Weights) -> Weights:
    """The state dict as timm's model has it: some published files are their authors', with other names or sizes."""
    timm = _import_timm()
    arch, tag = _split(name, tag)
    overlay = {"state_dict": dict(weights.state)}
    try:
        with torch.random.fork_rng(devices=[]):  # what a model is initialised with must not disturb the caller's draws
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
            with _quiet("huggingface_hub"):
                return Path(hub.hf_hub_download(repository, file, cache_dir=cache, revision=revision or None))
        except hub.errors.RemoteEntryNotFoundError:  # the repository is there, the file isn't
            continue
        except Exception as error:  # the hub's own errors, those of its HTTP library, a full disk
            reason = one_line(error)
            break
    raise CheckpointError(
        f"{published.name}: {repository} of the Hugging Face Hub is not in {cache}, and fetching it failed ({reason}); "
        f"on another machine run `hf download {repository}` and bring what it adds to its cache into that folder "
        f"(HF_HOME says where the cache is), {_INSTEAD}"
    )


def _cached_or_fetched(published: _Published) -> Path:
    assert published.url is not None, published.name
    folder = hub_folder()
    here = [f"pretrained:{tag}" for tag, other in published.others.items() if (folder / file_name(other)).exists()]
    instead = _INSTEAD + (f"; of the same model, {' and '.join(here)} is there" if here else "")
    return cached_or_fetched(published.url, wanted=published.name, instead=instead)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Hold back a library's warnings of each attempt: the last one's reason is told."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
