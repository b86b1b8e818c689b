"""NAM in its parameter-free form."""

import jax

from nam_jax.attention.nam import ChannelNAM
from nam_jax.layers.batch_norm import Moments


class TiedNAM(ChannelNAM, kw_only=True):
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
