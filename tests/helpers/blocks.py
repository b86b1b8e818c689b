"""Every attention module, to be built and called alike."""

import numpy as np
import pytest
from flax import linen as nn

import nam_jax
from nam_jax.attention import TiedNAM, attention

MODULES = {
    "nam_channel": nam_jax.ChannelNAM,
    "nam_spatial": nam_jax.SpatialNAM,
    "nam": nam_jax.NAM,
    "nam_tied": TiedNAM,
    "se": nam_jax.SqueezeExcite,
    "bam": nam_jax.BAM,
    "cbam": nam_jax.CBAM,
    "tam": nam_jax.TripletAttention,
}
WITH_NORM = [name for name in MODULES if name not in ("nam_tied", "se")]
each_name = pytest.mark.parametrize("name", MODULES)
each_norm = pytest.mark.parametrize("name", WITH_NORM)
each_mode = pytest.mark.parametrize("train", [False, True])

SHAPE = (4, 5, 3, 32)


class Block(nn.Module):
    """A module that is called alike whatever its name; nam_tied gets its scale."""

    name_: str
    dtype: object = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        options = {"dtype": self.dtype, "axis_name": self.axis_name, "name": "attention"}
        call = {}
        if self.name_ == "nam_tied":
            call = {"scale": self.param("scale", nn.initializers.ones, x.shape[-1:])}
        module = attention(self.name_)(**options)
        return module(x, use_running_average=use_running_average, moments=None, **call)


def image(shape=SHAPE, seed=0, dtype=np.float32):
    return (0.5 + 2 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
