"""Coordinate attention."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_at_least_1, check_rank
from nam_jax.layers import initializers
from nam_jax.layers.batch_norm import Moments, to_reduce
from nam_jax.layers.convolution import convolution
from nam_jax.layers.dtypes import widened

LEAST_FEATURES = 8


class CoordinateAttention(AttentionModule, kw_only=True):
    """A gate for every row and one for every column of each channel: y = g_h g_w x.

    .. math::
      f = hswish(BN(conv1([r, c]))),  hswish(f) = f min(max(f + 3, 0), 6) / 6
      g_h = sigmoid(conv_h(f_r)),  g_w = sigmoid(conv_w(f_c))

    where r is the mean of x over columns and c that over rows; [ , ] puts H rows and W columns
    into one sequence, which conv1 and BN share, and f_r and f_c are its two parts. The children
    are `conv1`, `bn1`, `conv_h` and `conv_w`: 1×1 convolutions with biases, and the BatchNorm.

    Attributes:
      reduction: Number of channels for every feature between the convolutions (at least eight
        features are left).
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> module = nam_jax.CoordinateAttention(use_running_average=True)
      >>> init = lambda x: module.init_with_output(jax.random.key(0), x)
      >>> y, variables = jax.eval_shape(init, jnp.ones((2, 4, 4, 32)))
      >>> y.shape, sorted(variables["params"])
      ((2, 4, 4, 32), ['bn1', 'conv1', 'conv_h', 'conv_w'])

    Source: Q. Hou, D. Zhou and J. Feng, Coordinate Attention for Efficient Mobile Network
    Design, 2021, https://arxiv.org/abs/2103.02907, section 3; its code has the h-swish.
    """

    reduction: int = 32
    momentum: float = 0.9
    epsilon: float = 1e-5

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
          use_running_average: The attribute of this name, unless given at construction.
          moments: Moments of x, as `nam_jax.BatchNorm` returns them, of which only the array
            `moments.of` is used, in place of x in reductions.

        Returns:
          Gated input g_h g_w x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or a hyper-parameter is out of its range.
        """
        check_rank(self, x)
        check_at_least_1(self, "reduction")
        height, channels = x.shape[1], x.shape[3]
        reduced = widened(to_reduce(x, moments))
        rows, columns = reduced.mean(2, keepdims=True), reduced.mean(1, keepdims=True)
        both = jnp.concatenate([rows, columns.swapaxes(1, 2)], axis=1)
        both = self._conv(both, max(LEAST_FEATURES, channels // self.reduction), "conv1")
        both = nn.hard_swish(self._batch_norm("bn1")(both, use_running_average))
        rows, columns = both[:, :height], both[:, height:].swapaxes(1, 2)
        gate_h = nn.sigmoid(self._conv(rows, channels, "conv_h"))
        gate_w = nn.sigmoid(self._conv(columns, channels, "conv_w"))
        return self._gated(x, gate_h * gate_w)

    def _conv(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return nn.Conv(
            features,
            (1, 1),
            kernel_init=initializers.conv_kernel,
            bias_init=initializers.bias(x.shape[-1]),
            conv_general_dilated=convolution,
            param_dtype=self.param_dtype,
            name=name,
        )(x)
