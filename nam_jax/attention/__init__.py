"""Attention modules by name."""

from collections.abc import Callable

import jax
from flax import linen as nn

from nam_jax.batch_norm import Moments
from nam_jax.nam import NAM, ChannelNAM, SpatialNAM


class TiedNAM(ChannelNAM):
    """ChannelNAM in its parameter-free form only: called without `scale` it raises."""

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """Gates x by the scale of the BatchNorm whose output it is; see ChannelNAM.

        Raises:
          ValueError: scale is missing.
        """
        if scale is None:
            raise ValueError("nam_tied needs scale=, that of the BatchNorm whose output x is.")
        return super().__call__(x, use_running_average, moments, scale)


_MODULES: dict[str, Callable[..., nn.Module] | None] = {
    "none": None,
    "nam_channel": ChannelNAM,
    "nam_spatial": SpatialNAM,
    "nam": NAM,
    "nam_tied": TiedNAM,
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
