"""Convolutions, on CPUs in the forms that XLA computes fastest there."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nam_jax.dtypes import widened

# With fewer channels XLA's own gradient of the kernel is the faster one.
FEW_CHANNELS = 8
# That a batch is taken in for the gradient of a kernel, where it divides into so many.
PARTS = 16

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for the field of that name of `flax.linen.Conv`.

    On CPUs, and only there, three kinds of convolution are written in terms that XLA computes
    faster: 1×1 convolutions as matrix products, depthwise ones as sums of shifted products, and
    the gradient of other kernels as one matrix product. The results differ by rounding alone.

    Args:
      x: (N, H, W, C).
      kernel: (height, width, C / feature_group_count, features), of the dtype of x.
      strides: of the window, for both axes.
      padding: "SAME", "VALID", or pixels before and after, for both axes.
      lhs_dilation: of x, for both axes.
      rhs_dilation: of the kernel, for both axes.
      feature_group_count: the number of groups of channels.
      **options: as `jax.lax.conv_general_dilated`, for the layout above.

    Returns:
      (N, H', W', features).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from nam_jax.convolution import convolution
      >>> conv = nn.Conv(8, (3, 3), conv_general_dilated=convolution)
      >>> x = jnp.ones((2, 4, 4, 3))
      >>> conv.apply(conv.init(jax.random.key(0), x), x).shape
      (2, 4, 4, 8)
    """

    def default(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            **options,
        )

    window = kernel.shape[:2]
    if max(lhs_dilation) > 1 or (max(rhs_dilation) > 1 and window != (1, 1)):
        return default(x, kernel)
    pads = padding
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, pads)
    cheaper = _cheaper_on_cpu(x, kernel, strides, pads, feature_group_count, default)
    if cheaper is None:
        return default(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=cheaper, default=default)


def _cheaper_on_cpu(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
    default: Convolution,
) -> Convolution | None:
    if groups == x.shape[-1] == kernel.shape[-1]:
        return functools.partial(_depthwise, strides=strides, padding=padding)
    if groups > 1:
        return None
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return functools.partial(_pointwise, strides=strides)
    if _keeps_size(kernel, strides, padding) and x.shape[-1] >= FEW_CHANNELS:
        return functools.partial(_same, default)
    return None


def _keeps_size(
    kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> bool:
    height, width = kernel.shape[:2]
    is_centred = [tuple(pads) for pads in padding] == [(height // 2,) * 2, (width // 2,) * 2]
    return is_centred and height % 2 == width % 2 == 1 and tuple(strides) == (1, 1)


def _pointwise(x: jax.Array, kernel: jax.Array, *, strides: Sequence[int]) -> jax.Array:
    """A 1×1 convolution: a product with the pixels as rows of one matrix."""
    x = x[:, :: strides[0], :: strides[1]]
    # Of matrices only: XLA's product over several axes at once is slow.
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _depthwise(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """A convolution of every channel by itself: a sum of shifted products."""
    padded = widened(jnp.pad(x, ((0, 0), *padding, (0, 0))))
    height, width = kernel.shape[:2]
    ends = (padded.shape[1] - height + 1, padded.shape[2] - width + 1)
    shifted = (
        padded[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]] * kernel[i, j, 0]
        for i in range(height)
        for j in range(width)
    )
    return functools.reduce(jnp.add, shifted).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _same(default: Convolution, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution that keeps the map's size, with a cheaper gradient of its kernel."""
    return default(x, kernel)


@_same.defjvp
def _same_jvp(
    default: Convolution,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    return default(x, kernel), default(dx, kernel) + _in_parts(x, dkernel)


def _in_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_by_rows` of a few images at a time, whose shifted copies stay in the cache."""
    num_parts = math.gcd(len(x), PARTS)
    if math.prod(x.shape[:-1]) // num_parts < kernel.shape[0] * kernel.shape[-1]:
        # Adding up the kernels of so many parts would take longer than their products.
        num_parts = 1
    parts = x.reshape(num_parts, -1, *x.shape[1:])
    # Else the copies would be made beforehand and kept for the backward pass.
    y = jax.lax.map(jax.checkpoint(lambda part: _by_rows(part, kernel)), parts)
    return y.reshape(*x.shape[:-1], -1)


def _by_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution that keeps the map's size, as one product and a sum of shifted rows.

    It is the gradient of the kernel that is wanted of it: one product of x, shifted along the
    rows, with the gradient of the output, shifted along the columns.
    """
    height, width, depth, features = kernel.shape
    num_rows, num_columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (0, 0), (width // 2,) * 2, (0, 0)))
    shifted = [padded[:, :, j : j + num_columns] for j in range(width)]
    matrix = kernel.transpose(1, 2, 0, 3).reshape(width * depth, height * features)
    products = _pointwise(jnp.concatenate(shifted, -1), matrix[None, None], strides=(1, 1))
    products = jnp.pad(products, ((0, 0), (height // 2,) * 2, (0, 0), (0, 0)))
    rows = jnp.split(products, height, axis=-1)
    return functools.reduce(jnp.add, (row[:, i : i + num_rows] for i, row in enumerate(rows)))
