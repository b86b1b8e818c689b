"""Attention modules by name."""

from collections.abc import Callable

from flax import linen as nn

from nam_jax.nam import NAM, ChannelNAM, SpatialNAM

_MODULES: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "nam_channel": ChannelNAM,
    "nam_spatial": SpatialNAM,
    "nam": NAM,
    "nam_tied": ChannelNAM,
}

NAMES = tuple(_MODULES)


def attention(name: str) -> Callable[..., nn.Module] | None:
    """Looks up an attention module by its name.

    Args:
      name: `none`, `nam_channel`, `nam_spatial`, `nam` or `nam_tied`.

    Returns:
      The factory of the module, or None for `none`. A module of `nam_tied` has to be called
      with `scale=`, the scale of the BatchNorm that it gates.

    Raises:
      ValueError: there is no such attention.

    Example:
      >>> import nam_jax
      >>> module = nam_jax.attention("nam")(momentum=0.9)
    """
    if name not in _MODULES:
        raise ValueError(f"There is no attention {name!r}; choose one of {', '.join(NAMES)}.")
    return _MODULES[name]
