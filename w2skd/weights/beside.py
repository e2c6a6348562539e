"""Settings of a network that change what it computes and that no tensor of its state dict shows.

Most networks have none: they are built from the recipe. Growing a U-Net changes some, so checkpoints record them.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from w2skd.errors import CheckpointError

_KEY = "beside_weights"
"""Key of the settings in the details of a checkpoint."""


@runtime_checkable
class HasSettings(Protocol):
    """A network with such settings."""

    def settings_beside_weights(self) -> dict[str, float]:
        """Return the settings as keyword arguments of `set_beside_weights`."""
        ...

    def set_beside_weights(self, **settings: Any) -> None:
        """Change the settings.

        Raises:
            ValueError: a value is impossible for this network.
        """
        ...


def describe_beside(model: nn.Module) -> dict[str, Any]:
    """Return what the details of a checkpoint must contain for `restore_beside`."""
    return {_KEY: model.settings_beside_weights()} if isinstance(model, HasSettings) else {}


def restore_beside(model: nn.Module, details: Mapping[str, Any], source: object) -> None:
    """Give a freshly built model the settings of a checkpoint, if the checkpoint records some.

    Args:
        model: without compilation and other wrappers.
        details: of the checkpoint.
        source: name of the checkpoint, for errors.

    Raises:
        CheckpointError: the model does not have such settings.
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
