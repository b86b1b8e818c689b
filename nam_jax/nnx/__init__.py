"""NAM in Flax NNX: native modules, linen ones as NNX modules, attention in foreign models."""

from nam_jax.nnx.attach import attach
from nam_jax.nnx.from_linen import FromLinen
from nam_jax.nnx.nam import NAM, ChannelNAM, SpatialNAM, TiedNAM

__all__ = ["NAM", "ChannelNAM", "FromLinen", "SpatialNAM", "TiedNAM", "attach"]
