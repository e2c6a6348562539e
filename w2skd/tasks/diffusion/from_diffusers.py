"""U-Nets that diffusers' ``save_pretrained`` wrote: architecture, weights and noising process of a folder.

The folder is a pipeline's, with ``unet/`` and ``scheduler/`` in it, or a U-Net's own, with ``config.json``.
Configurations are parsed as JSON and cannot run code.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from w2skd.errors import CheckpointError, RecipeError, UserError
from w2skd.tasks.diffusion.unet import DenoisingUNet, require_halving
from w2skd.weights.load import Weights, load_weights

_CLASS = "UNet2DModel"
_SETTINGS = frozenset(inspect.signature(DenoisingUNet.__init__).parameters) - {"self", "args", "kwargs"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention projections before diffusers 0.15, which published checkpoints still use -> current names."""


def build_from_folder(folder: Path, *, size_px: int, classes: int | None) -> DenoisingUNet:
    """Build a freshly initialised U-Net with the architecture of a folder's configuration.

    Args:
        folder: a pipeline's or a U-Net's.
        size_px: S, side of the images.
        classes: number of classes if it is to be class-conditional, else None.

    Raises:
        RecipeError: the folder or its configuration is missing, damaged, or that of another kind of network; or the
            network has other channels, another image size, or another number of classes.
    """
    file = _unet_folder(folder) / "config.json"
    config = _read(file, RecipeError)
    if config.get("_class_name", _CLASS) != _CLASS:
        raise RecipeError(f"{file}: a {config['_class_name']}, but only {_CLASS} denoises images without further input")
    # Null differs from the default for some settings, so nulls are passed on; unknown ones with null are ignored.
    settings = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and (value is not None or key in _SETTINGS)
    }
    unknown = sorted(settings.keys() - _SETTINGS)
    if unknown:
        raise RecipeError(f"{file}: the installed diffusers has no {_CLASS} setting {', '.join(unknown)}")
    _require_fitting(file, settings, size_px, classes)
    try:
        model = DenoisingUNet(**settings)
        levels = len(model.config.down_block_types)
    except Exception as error:  # invalid settings can make the library raise anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RecipeError(f"{file}: cannot build the network: {reason[:200]}") from None
    require_halving(f"diffusers:{folder}", size_px, levels)
    return model


def load_folder(folder: Path) -> Weights:
    """Read the weights of a U-Net from its own folder or its pipeline's, preferring safetensors.

    Returns:
        The weights under diffusers' current names, with ``source`` and the result of `noising_process` as details.

    Raises:
        RecipeError: the folder is missing or contains no U-Net.
        CheckpointError: a file is missing, damaged or unsafe, or the network was not trained like a DDPM.
    """
    details = {"source": f"diffusers {folder}", **noising_process(folder)}
    unet = _unet_folder(folder)
    file = next((unet / name for name in _WEIGHTS if (unet / name).exists()), None)
    if file is None:
        raise CheckpointError(f"{unet}: contains neither {' nor '.join(_WEIGHTS)}")
    weights = load_weights(file)
    return replace(weights, state=current_names(weights.state), details=details)


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of checkpoints from older versions of diffusers as the current version does."""
    former = re.compile(rf"(attentions\.\d+)\.({'|'.join(_FORMER_NAMES)})\.")
    return {
        former.sub(lambda found: f"{found[1]}.{_FORMER_NAMES[found[2]]}.", name): tensor
        for name, tensor in state.items()
    }


def noising_process(folder: Path) -> dict[str, Any]:
    """Read from a folder's scheduler which noising process its U-Net was trained on.

    Returns:
        ``prediction``: ``epsilon`` or ``v``; ``timesteps``; ``beta_schedule``: ``linear`` or ``cosine`` if it equals
        the recipe's schedule of that name, else a description. Empty if there is no scheduler.

    Raises:
        RecipeError: the folder is missing or contains no U-Net.
        CheckpointError: the scheduler's configuration is damaged, or is that of another kind of process or prediction.
    """
    unet = _unet_folder(folder)
    pipeline = unet.parent if unet.name == "unet" else unet
    # The oldest pipelines keep everything in one folder.
    files = (pipeline / "scheduler" / "scheduler_config.json", pipeline / "scheduler_config.json")
    file = next((each for each in files if each.exists()), None)
    if file is None:
        return {}
    config = _read(file, CheckpointError)
    if "beta_schedule" not in config:
        kind = config.get("_class_name", "a scheduler without beta_schedule")
        raise CheckpointError(f"{file}: {kind}: not a noising process with betas, as DDPM and DDIM have")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise CheckpointError(
            f"{file}: prediction_type {prediction!r} is not supported; supported: {', '.join(_PREDICTIONS)}"
        )
    return {
        "prediction": _PREDICTIONS[prediction],
        "timesteps": config.get("num_train_timesteps", 1000),
        "beta_schedule": _beta_schedule(config),
    }


def _beta_schedule(config: Mapping[str, Any]) -> str:
    if config.get("trained_betas") is not None:
        return "custom betas"
    schedule = (config["beta_schedule"], config.get("beta_start", 0.0001), config.get("beta_end", 0.02))
    name = f"{schedule[0]} from {schedule[1]} to {schedule[2]}"
    if schedule[0] == "squaredcos_cap_v2":
        name = "cosine"
    elif schedule == ("linear", 0.0001, 0.02):
        name = "linear"
    return f"{name}, rescaled to zero terminal SNR" if config.get("rescale_betas_zero_snr") else name


def _unet_folder(folder: Path) -> Path:
    """Find the folder with the U-Net's ``config.json``.

    Raises:
        RecipeError: there is none.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    for found in (folder / "unet", folder):
        if (found / "config.json").exists():
            return found
    raise RecipeError(f"{folder}: not a U-Net of diffusers: contains neither config.json nor unet/config.json")


def _read(file: Path, error: type[UserError]) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{file}: damaged or truncated ({str(reason)[:120]})") from None
    if not isinstance(values, dict):
        raise error(f"{file}: expected a mapping, got a {type(values).__name__}")
    return values


def _require_fitting(file: Path, settings: Mapping[str, Any], size_px: int, classes: int | None) -> None:
    channels = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if channels != (3, 3):
        raise RecipeError(f"{file}: maps {channels[0]} to {channels[1]} channels, expected 3 to 3")
    side_px = settings.get("sample_size")
    if side_px is not None and side_px != size_px and side_px != [size_px, size_px]:
        own = " x ".join(map(str, side_px)) if isinstance(side_px, list) else side_px
        raise RecipeError(f"{file}: made for images of {own} px, but data.image_size is {size_px} px")
    for key, supported in (("time_embedding_type", "positional"), ("class_embed_type", None)):
        if settings.get(key, supported) != supported:
            raise RecipeError(f"{file}: {key} {settings[key]!r} is not supported, only {json.dumps(supported)}")
    own_classes = settings.get("num_class_embeds")
    if own_classes != classes:
        own, wanted = (f"{number} classes" if number is not None else "no classes" for number in (own_classes, classes))
        raise RecipeError(
            f"{file}: built for {own} (num_class_embeds), but the recipe has {wanted} (diffusion.class_conditional)"
        )
