"""Efficient channel attention."""

import jax
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_odd, check_rank
from nam_jax.layers import initializers
from nam_jax.layers.batch_norm import Moments, to_reduce
from nam_jax.layers.dtypes import widened


def adaptive_kernel_size(channels: int) -> int:
    """The odd number nearest to (log₂ channels + 1) / 2, of two the larger.

    Args:
      channels: Number of channels, at least 1.

    Example:
      >>> from nam_jax.attention.eca import adaptive_kernel_size
      >>> [adaptive_kernel_size(channels) for channels in (4, 64, 256, 2048)]
      [1, 3, 5, 7]
    """
    return channels.bit_length() // 2 | 1


class ECA(AttentionModule, kw_only=True):
    """Channel attention in which a channel meets its neighbours alone: y = s x.

    .. math::
      s = sigmoid(conv(z)),  z = mean x

    The mean is that of each channel over the map. The convolution, the child `conv`, goes along
    the channels, with zeros beyond the first and the last; it has one kernel (k, 1, 1) for all of
    them and no bias.

    Attributes:
      kernel_size: Number of channels k that a gate sees, odd; None: `adaptive_kernel_size`.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`;
        nothing is normalised here.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> init = lambda x: nam_jax.ECA().init_with_output(jax.random.key(0), x)
      >>> y, variables = jax.eval_shape(init, jnp.ones((2, 4, 4, 32)))
      >>> y.shape, variables["params"]["conv"]["kernel"].shape
      ((2, 4, 4, 32), (3, 1, 1))

    Source: Q. Wang, B. Wu, P. Zhu, P. Li, W. Zuo and Q. Hu, ECA-Net: Efficient Channel
    Attention for Deep Convolutional Neural Networks, 2019, https://arxiv.org/abs/1910.03151,
    section 3.
    """

    kernel_size: int | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
    ) -> jax.Array:
        """Gates x.

        Args:
          x: Input (N, H, W, C).
          use_running_average: Not used: nothing is normalised.
          moments: Moments of x, as `nam_jax.BatchNorm` returns them, of which only the array
            `moments.of` is used, in place of x in reductions.

        Returns:
          Gated input s x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or a hyper-parameter is out of its range.
        """
        del use_running_average
        check_rank(self, x)
        if self.kernel_size is not None:
            check_odd(self, "kernel_size")
        kernel_size = int(self.kernel_size or adaptive_kernel_size(x.shape[-1]))
        conv = nn.Conv(
            1,
            (kernel_size,),
            padding=kernel_size // 2,
            use_bias=False,
            kernel_init=initializers.linear_kernel,
            param_dtype=self.param_dtype,
            name="conv",
        )
        pooled = widened(to_reduce(x, moments)).mean((1, 2))
        gate = nn.sigmoid(conv(pooled[..., None]))[..., 0]
        return self._gated(x, gate[:, None, None])
