"""Settings of a network that affect its output but are not visible in its state dict.

Most networks take all such settings from the recipe. Growing a U-Net changes some of them, so checkpoints record them.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from w2skd.errors import CheckpointError

_KEY = "beside_weights"
"""Key of the settings in the details of a checkpoint."""


@runtime_checkable
class HasSettings(Protocol):
    """A network with settings that checkpoints must record."""

    def settings_beside_weights(self) -> dict[str, float]:
        """Return the settings as keyword arguments of `set_beside_weights`."""
        ...

    def set_beside_weights(self, **settings: Any) -> None:
        """Change the settings.

        Raises:
            ValueError: a value is invalid for this network.
        """
        ...


def describe_beside(model: nn.Module) -> dict[str, Any]:
    """Return the entries of a checkpoint's details from which `restore_beside` restores the settings."""
    return {_KEY: model.settings_beside_weights()} if isinstance(model, HasSettings) else {}


def restore_beside(model: nn.Module, details: Mapping[str, Any], source: object) -> None:
    """Apply the settings that a checkpoint records, if any, to a freshly built model.

    Args:
        model: the model, without compilation and other wrappers.
        details: the checkpoint's details.
        source: name of the checkpoint, for error messages.

    Raises:
        CheckpointError: the model has no such settings, or a value is invalid.
    """
    settings = details.get(_KEY)
    if settings is None:
        return
    own = model.settings_beside_weights() if isinstance(model, HasSettings) else {}
    if not isinstance(settings, dict) or settings.keys() != own.keys():
        raise CheckpointError(
            f"{source}: records the settings {settings!r:.80}, but the model has {list(own) or 'none'}"
        )
    assert isinstance(model, HasSettings)
    try:
        model.set_beside_weights(**settings)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
