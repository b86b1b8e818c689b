"""The gate of CBAM's spatial half and of triplet attention: where in a plane to look."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from nam_jax.attention.base import check_at_least_1, mean_and_maximum, shared_fields
from nam_jax.layers import initializers
from nam_jax.layers.batch_norm import AxisNames, BatchNorm
from nam_jax.layers.dtypes import widened


class PooledGate(nn.Module, kw_only=True):
    """A gate over two axes of (N, H, W, C), from maximum and mean along the third.

    gate = sigmoid(BN(conv([max x, mean x])))

    The convolution, the child `conv`, has one output and no bias; `bn` is its BatchNorm.

    Attributes:
      pooled_axis: the third axis: 1, 2 or 3.
      kernel_size: of the convolution, odd.
      momentum: decay of the running statistics.
      epsilon: added to the variance.
      use_running_average: normalise with the running statistics instead of the batch's.
      param_dtype: of the parameters.
      axis_name: mapped axis (or axes) of devices that share their batch statistics.
    """

    pooled_axis: int
    kernel_size: int
    momentum: float
    epsilon: float
    use_running_average: bool | None
    param_dtype: Dtype
    axis_name: AxisNames | None

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool | None) -> jax.Array:
        """Maps (N, H, W, C) to the gate, in (0, 1), of size 1 along the pooled axis."""
        check_at_least_1(self, "kernel_size")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size has to be odd; got {self.kernel_size}.")
        mean, highest = mean_and_maximum(widened(x), (self.pooled_axis,))
        pooled = jnp.stack([highest, mean], axis=-1)
        conv = nn.Conv(
            1,
            (self.kernel_size, self.kernel_size),
            padding=self.kernel_size // 2,
            use_bias=False,
            kernel_init=initializers.conv_kernel,
            param_dtype=self.param_dtype,
            name="conv",
        )
        bn = BatchNorm(**shared_fields(self, BatchNorm), name="bn")
        gate = nn.sigmoid(bn(conv(pooled), use_running_average))
        return jnp.expand_dims(gate[..., 0], self.pooled_axis)
