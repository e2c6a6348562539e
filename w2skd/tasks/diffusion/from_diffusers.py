"""U-Nets in folders as diffusers writes them (``save_pretrained``): what their configuration files say.

A folder is a pipeline's, with ``unet/`` and ``scheduler/`` in it, or a U-Net's own, with ``config.json``. Files are
parsed as JSON and name no code that is run.
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
_KNOWN = frozenset(inspect.signature(DenoisingUNet.__init__).parameters) - {"self", "args", "kwargs"}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of attention's projections, before diffusers 0.15, which published checkpoints still have."""


def build_from_folder(folder: Path, *, size_px: int, classes: int | None) -> DenoisingUNet:
    """A freshly initialised U-Net of the architecture that a folder's configuration tells.

    Args:
        folder: a pipeline's or a U-Net's.
        size_px: S, side of the images that it will see.
        classes: how many classes it will be told of; None: of none.

    Raises:
        RecipeError: the folder or its configuration is missing, damaged, or of another kind of network; or the network
            is for images of other channels or size, or for another number of classes.
    """
    file = _unet_folder(folder) / "config.json"
    config = _read(file, RecipeError)
    if config.get("_class_name", _CLASS) != _CLASS:
        raise RecipeError(f"{file}: a {config['_class_name']}, not a {_CLASS}: it does not denoise images on its own")
    settings = {key: value for key, value in config.items() if not key.startswith("_") and value is not None}
    unknown = sorted(settings.keys() - _KNOWN)
    if unknown:
        raise RecipeError(f"{file}: the installed diffusers knows no {', '.join(unknown)} of a {_CLASS}")
    # Those that are null are told too: some mean something else than the default.
    settings |= {key: None for key, value in config.items() if value is None and key in _KNOWN}
    _require_fitting(file, settings, size_px, classes)
    try:
        model = DenoisingUNet(**settings)
        levels = len(model.config.down_block_types)
    except Exception as error:  # nonsense in a file makes the library raise about anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RecipeError(f"{file}: no network can be built of it: {reason[:200]}") from None
    require_halving(f"diffusers:{folder}", size_px, levels)
    return model


def load_folder(folder: Path) -> Weights:
    """Read the weights of a U-Net that diffusers' ``save_pretrained`` wrote, alone or in a pipeline.

    Returns:
        The weights under today's names, with ``source`` and what the folder's scheduler tells as details.

    Raises:
        RecipeError: there is no such folder, or no U-Net in it.
        CheckpointError: a file is missing, damaged or unsafe, or the network was not trained as DDPMs are.
    """
    details = {"source": f"diffusers {folder}", **noising_process(folder)}
    weights = load_weights(weights_file(folder))
    return replace(weights, state=present_names(weights.state), details=details)


def weights_file(folder: Path) -> Path:
    """Where the weights of a folder's U-Net are; safetensors before a pickle.

    Raises:
        RecipeError: there is no such folder, or no U-Net in it.
        CheckpointError: it has no weights.
    """
    unet = _unet_folder(folder)
    for name in _WEIGHTS:
        if (unet / name).exists():
            return unet / name
    raise CheckpointError(f"{unet}: has no weights, neither {' nor '.join(_WEIGHTS)}")


def present_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that today's diffusers gives them."""
    former = re.compile(rf"(attentions\.\d+)\.({'|'.join(_FORMER_NAMES)})\.")
    return {
        former.sub(lambda found: f"{found[1]}.{_FORMER_NAMES[found[2]]}.", name): tensor
        for name, tensor in state.items()
    }


def noising_process(folder: Path) -> dict[str, Any]:
    """What a folder's scheduler says of the process that its U-Net was trained to undo.

    Returns:
        ``prediction``: ``epsilon`` or ``v``; ``timesteps``; ``beta_schedule``: ``linear`` or ``cosine`` if it is what a
        recipe means by these words, else whatever it is, in words. Empty where there is no scheduler.

    Raises:
        RecipeError: there is no such folder, or no U-Net in it.
        CheckpointError: the scheduler's configuration is damaged, tells of another kind of process, or of a network
            that predicts something else.
    """
    unet = _unet_folder(folder)
    beside = unet.parent if unet.name == "unet" else unet
    # The oldest pipelines keep everything in one folder.
    files = (beside / "scheduler" / "scheduler_config.json", beside / "scheduler_config.json")
    file = next((each for each in files if each.exists()), None)
    if file is None:
        return {}
    config = _read(file, CheckpointError)
    if "beta_schedule" not in config:
        kind = config.get("_class_name", "a scheduler without beta_schedule")
        raise CheckpointError(f"{file}: {kind}: not a process that adds noise by betas, as DDPM's and DDIM's does")
    said = config.get("prediction_type", "epsilon")
    if said not in _PREDICTIONS:
        raise CheckpointError(
            f"{file}: the network predicts {said!r}; of diffusers' networks those of prediction_type "
            f"{' and '.join(_PREDICTIONS)} can be used"
        )
    return {
        "prediction": _PREDICTIONS[said],
        "timesteps": config.get("num_train_timesteps", 1000),
        "beta_schedule": _betas(config),
    }


def _betas(config: Mapping[str, Any]) -> str:
    if config.get("trained_betas") is not None:
        return "betas of its own"
    name, first, last = config["beta_schedule"], config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    if name == "squaredcos_cap_v2":
        said = "cosine"
    elif (name, first, last) == ("linear", 0.0001, 0.02):
        said = "linear"
    else:
        said = f"{name} from {first} to {last}"
    return f"{said}, rescaled to end without signal" if config.get("rescale_betas_zero_snr") else said


def _unet_folder(folder: Path) -> Path:
    """The folder with the U-Net's ``config.json``.

    Raises:
        RecipeError: there is none.
    """
    if not folder.is_dir():
        raise RecipeError(f"{folder}: no such folder")
    for found in (folder / "unet", folder):
        if (found / "config.json").exists():
            return found
    raise RecipeError(f"{folder}: no U-Net of diffusers, since neither config.json nor unet/config.json is in it")


def _read(file: Path, error: type[UserError]) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{file}: damaged or cut off ({str(reason)[:120]})") from None
    if not isinstance(values, dict):
        raise error(f"{file}: holds {type(values).__name__}, not settings by name")
    return values


def _require_fitting(file: Path, settings: Mapping[str, Any], size_px: int, classes: int | None) -> None:
    channels = settings.get("in_channels", 3), settings.get("out_channels", 3)
    if channels != (3, 3):
        raise RecipeError(f"{file}: a network from {channels[0]} to {channels[1]} channels, not from 3 to 3")
    side_px = settings.get("sample_size")
    if side_px is not None and side_px != size_px and side_px != [size_px, size_px]:
        told = " x ".join(map(str, side_px)) if isinstance(side_px, list) else side_px
        raise RecipeError(f"{file}: a network for images of {told} px, where data.image_size is {size_px} px")
    embedding = settings.get("time_embedding_type", "positional")
    if embedding != "positional":
        raise RecipeError(f"{file}: time_embedding_type is {embedding!r}; only 'positional' is of DDPM's kind")
    if settings.get("class_embed_type") is not None:
        raise RecipeError(f"{file}: class_embed_type is {settings['class_embed_type']!r}; only null takes classes")
    theirs = settings.get("num_class_embeds")
    if theirs != classes:
        told, wanted = (f"{number} classes" if number is not None else "no classes" for number in (theirs, classes))
        raise RecipeError(
            f"{file}: a network that is told of {told} (num_class_embeds), where the recipe has {wanted} to tell "
            f"(diffusion.class_conditional)"
        )
