"""What several attention modules are made of."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from nam_jax.attention.base import check_at_least_1, check_odd, shared_fields
from nam_jax.layers import initializers
from nam_jax.layers.batch_norm import AxisNames, BatchNorm
from nam_jax.layers.dtypes import widened


def hidden_features(channels: int, reduction: int) -> int:
    """Features between two layers of so many channels: `reduction` times fewer, at least 1."""
    return max(1, channels // reduction)


class MLP(nn.Module, kw_only=True):
    """The two linear layers by which SE, BAM and CBAM weigh channels.

    y = fc2(relu(norm(fc1(x)))), with `reduction` times fewer features between the two

    Attributes:
      reduction: Number of channels for every feature between the layers, at least 1.
      use_bias: Whether both layers have a bias.
      param_dtype: Dtype of the parameters.
    """

    reduction: int
    use_bias: bool
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, norm: Callable[[jax.Array], jax.Array] = lambda x: x
    ) -> jax.Array:
        """Maps (..., C) to (..., C)."""
        check_at_least_1(self, "reduction")
        channels = x.shape[-1]
        x = norm(self._linear(x, hidden_features(channels, self.reduction), "fc1"))
        return self._linear(nn.relu(x), channels, "fc2")

    def _linear(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return nn.Dense(
            features,
            use_bias=self.use_bias,
            kernel_init=initializers.linear_kernel,
            bias_init=initializers.bias(x.shape[-1]),
            param_dtype=self.param_dtype,
            name=name,
        )(x)


class PooledGate(nn.Module, kw_only=True):
    """A gate over two axes of (N, H, W, C), from maximum and mean along the third.

    gate = sigmoid(BN(conv([max x, mean x])))

    The convolution, the child `conv`, has one output and no bias; `bn` is its BatchNorm.

    Attributes:
      pooled_axis: Third axis: 1, 2 or 3.
      kernel_size: Height and width of the convolution's kernel, odd.
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      use_running_average: Whether to normalise with the running statistics instead of the
        batch's.
      param_dtype: Dtype of the parameters.
      axis_name: Mapped axis (or axes) of devices that share their batch statistics.
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
        check_odd(self, "kernel_size")
        mean, highest = mean_and_maximum(widened(x), (self.pooled_axis,))
        pooled = jnp.stack([highest, mean], axis=-1)
        conv = nn.Conv(
            1,
            (self.kernel_size, self.kernel_size),
            padding=int(self.kernel_size // 2),
            use_bias=False,
            kernel_init=initializers.conv_kernel,
            param_dtype=self.param_dtype,
            name="conv",
        )
        bn = BatchNorm(**shared_fields(self, BatchNorm), name="bn")
        gate = nn.sigmoid(bn(conv(pooled), use_running_average))
        return jnp.expand_dims(gate.squeeze(-1), self.pooled_axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def mean_and_maximum(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and maximum along some axes; the maximum's gradient goes to its first place alone.

    That of jnp.max compares x with its maximum. Where the compiler computes x anew and rounds
    it otherwise, no place compares equal, and the gradient is 0 / 0.
    """
    return x.mean(axes), x.max(axes)


@mean_and_maximum.defjvp
def _mean_and_maximum_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    *values, first = _mean_maximum_place(*primals, axes)
    return tuple(values), _tangents(first, tangents[0], axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _mean_maximum_place(
    x: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Also the first place of the maximum, all in one reduction: for one pass over x.

    With the place from jnp.argmax, a training step of CBAM takes 5 passes more on a TPU.
    """
    count = math.prod(x.shape[axis] for axis in axes)
    start = (x.dtype.type(0), x.dtype.type(-np.inf), np.int32(count))
    total, highest, first = jax.lax.reduce(
        (x, x, _places(x.shape, axes)), start, _sum_and_higher, axes
    )
    return total / count, highest, first


@_mean_maximum_place.defjvp
def _mean_maximum_place_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    values = _mean_maximum_place(*primals, axes)
    first = values[2]
    no_tangent = np.zeros(first.shape, jax.dtypes.float0)
    return values, (*_tangents(first, tangents[0], axes), no_tangent)


def _tangents(
    first: jax.Array, tangent: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Those of mean and maximum, from that of x and the first place of the maximum."""
    is_first = _places(tangent.shape, axes) == jnp.expand_dims(first, axes)
    return tangent.mean(axes), jnp.where(is_first, tangent, 0).sum(axes)


def _places(shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """Numbers the places along the axes, in row-major order."""
    places = jnp.zeros(shape, jnp.int32)
    for axis in axes:
        places = shape[axis] * places + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    return places


def _sum_and_higher(
    a: tuple[jax.Array, jax.Array, jax.Array], b: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (sum_a, x, i), (sum_b, y, j) = a, b
    take_a = (x > y) | jnp.isnan(x) | ((x == y) & (i < j))
    return sum_a + sum_b, jnp.where(take_a, x, y), jnp.where(take_a, i, j)
