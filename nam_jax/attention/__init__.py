"""Attention modules by name."""

from nam_jax.attention.bam import BAM
from nam_jax.attention.base import AttentionModule
from nam_jax.attention.cbam import CBAM
from nam_jax.attention.nam import NAM, ChannelNAM, SpatialNAM
from nam_jax.attention.nam_tied import TiedNAM
from nam_jax.attention.se import SqueezeExcite
from nam_jax.attention.triplet import TripletAttention

_MODULES: dict[str, type[AttentionModule] | None] = {
    "none": None,
    "nam_channel": ChannelNAM,
    "nam_spatial": SpatialNAM,
    "nam": NAM,
    "nam_tied": TiedNAM,
    "se": SqueezeExcite,
    "bam": BAM,
    "cbam": CBAM,
    "tam": TripletAttention,
}

NAMES = tuple(_MODULES)


def attention(name: str) -> type[AttentionModule] | None:
    """Looks up an attention module by its name.

    Args:
      name: `none`, `nam_channel`, `nam_spatial`, `nam`, `nam_tied`, `se`, `bam`, `cbam` or
        `tam`.

    Returns:
      The class of the module, or None for `none`. A module of `nam_tied` has to be called
      with `scale=`, the scale of the BatchNorm that it gates.

    Raises:
      ValueError: there is no such attention.

    Example:
      >>> import nam_jax
      >>> module = nam_jax.attention("cbam")(reduction=8)
    """
    if name not in _MODULES:
        raise ValueError(f"There is no attention {name!r}; choose one of {', '.join(NAMES)}.")
    return _MODULES[name]
