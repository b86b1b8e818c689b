"""Convolutions, on CPUs in the forms that XLA computes fastest there."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nam_jax.layers.dtypes import promoted, widened

# With fewer channels XLA's own gradient of the kernel is the faster one.
FEW_CHANNELS = 8
# Parts that a batch is divided into for the gradient of a kernel.
PARTS = 16
# A depthwise kernel of more taps is left to XLA: each is a product of its own.
MOST_TAPS = 49
LAYOUT = ("NHWC", "HWIO", "NHWC")

Convolution = Callable[[jax.Array, jax.Array], jax.Array]


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = LAYOUT,
    feature_group_count: int = 1,
    precision: jax.lax.PrecisionLike = None,
    **others: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, for the field of that name of `Conv` in Flax linen and NNX.

    On CPUs, and only there, three kinds of convolution over two axes are written in terms that XLA
    computes faster: 1×1 convolutions as matrix products, depthwise ones as sums of shifted
    products, and, where a convolution keeps the size of the map, the gradient of its kernel as
    matrix products. The results differ by rounding alone. All others are XLA's own.

    Args:
      x: Input (N, H, W, C).
      kernel: Kernel (height, width, C / feature_group_count, features), of the dtype of x.
      strides: Strides of the window along both axes, in pixels.
      padding: "SAME", "VALID", or pixels before and after, for both axes.
      lhs_dilation: Dilation of x along both axes, in pixels; None: 1.
      rhs_dilation: Dilation of the kernel along both axes, in pixels; None: 1.
      dimension_numbers: Layout of x, kernel and output; any but the default is left to XLA.
      feature_group_count: Number of groups of channels.
      precision: Precision of the products.
      **others: Further arguments of `jax.lax.conv_general_dilated`, which leave all to XLA unless
        they are None.

    Returns:
      Output (N, H', W', features), of the dtype of x.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> from flax import linen as nn
      >>> conv = nn.Conv(8, (3, 3), conv_general_dilated=nam_jax.convolution)
      >>> x = jnp.ones((2, 4, 4, 3))
      >>> conv.apply(conv.init(jax.random.key(0), x), x).shape
      (2, 4, 4, 8)
    """
    others = {name: value for name, value in others.items() if value is not None}

    def default(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            **others,
        )

    window = kernel.shape[:2]
    is_dilated = lhs_dilation is not None and max(lhs_dilation) > 1
    if rhs_dilation is not None and window != (1, 1):
        is_dilated |= max(rhs_dilation) > 1
    if others or x.ndim != 4 or is_dilated or not _has_layout(x, kernel, dimension_numbers):
        return default(x, kernel)
    pads = padding
    if isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, pads)
    # Of a map whose size is not known yet, each form would write a new size in its own way.
    if not _is_known(x.shape[1:3]) and not _keeps_size(kernel, strides, pads):
        return default(x, kernel)
    cheaper = _cheaper_on_cpu(x, kernel, strides, pads, feature_group_count, default)
    if cheaper is None or precision is not None or x.dtype != kernel.dtype:
        return default(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=cheaper, default=default)


def _is_known(shape: tuple[Any, ...]) -> bool:
    return all(isinstance(size, int) for size in shape)


def window(
    x: jax.Array, start: Sequence[int], size: Sequence[int], strides: Sequence[int]
) -> jax.Array:
    """Every so manyth pixel of a part of the map.

    It is what indexing gives, which for a batch of symbolic size would gather pixel by pixel.

    Args:
      x: Input (N, H, W, C).
      start: Row and column of the first pixel.
      size: Height and width of the part, in pixels.
      strides: Rows and columns from one pixel to the next.
    """
    height, width = size
    # An empty part may begin beyond the map.
    i, j = (0, 0) if 0 in size else start
    limits = (x.shape[0], i + height, j + width, x.shape[3])
    return jax.lax.slice(x, (0, i, j, 0), limits, (1, *strides, 1))


def _has_layout(x: jax.Array, kernel: jax.Array, dimension_numbers: Any) -> bool:
    shapes = x.shape, kernel.shape
    actual, wanted = (
        jax.lax.conv_dimension_numbers(*shapes, numbers) for numbers in (dimension_numbers, LAYOUT)
    )
    return actual == wanted


def _cheaper_on_cpu(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    groups: int,
    default: Convolution,
) -> Convolution | None:
    if any(pad < 0 for pads in padding for pad in pads):
        return None
    if groups > 1:
        is_depthwise = groups == x.shape[-1] == kernel.shape[-1]
        if not is_depthwise or math.prod(kernel.shape[:2]) > MOST_TAPS:
            return None
        # Else every shifted map would be kept for the backward pass.
        return jax.checkpoint(functools.partial(_depthwise, strides=strides, padding=padding))
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return functools.partial(_pointwise, strides=strides)
    if _keeps_size(kernel, strides, padding) and x.shape[-1] >= FEW_CHANNELS:
        return functools.partial(_same, default)
    return None


def _keeps_size(
    kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> bool:
    height, width = kernel.shape[:2]
    if max(strides) > 1 or height % 2 == 0 or width % 2 == 0:
        return False
    return [tuple(pads) for pads in padding] == [(height // 2,) * 2, (width // 2,) * 2]


def _pointwise(x: jax.Array, kernel: jax.Array, *, strides: Sequence[int]) -> jax.Array:
    """A 1×1 convolution: a product with the pixels as rows of one matrix."""
    x = window(x, (0, 0), x.shape[1:3], strides)
    # Of matrices only: XLA's product over several axes at once is slow.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return (rows @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


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
    sizes = (max(0, padded.shape[1] - height + 1), max(0, padded.shape[2] - width + 1))
    products = []
    for start in itertools.product(range(height), range(width)):
        shifted, tap = promoted(window(padded, start, sizes, strides), kernel[*start, 0])
        products.append(shifted * tap)
    return functools.reduce(jnp.add, products).astype(x.dtype)


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
    count = x.shape[0]
    # Images whose number or size is not known yet are not divided.
    num_parts = math.gcd(count, PARTS) if _is_known(x.shape[:-1]) and count else 1
    if num_parts == 1:
        return _by_rows(x, kernel)
    # The gradients of the parts, as large as the kernel, are added up: that has to cost little
    # beside the shifted copies.
    if math.prod(x.shape[:-1]) // num_parts < kernel.shape[0] * kernel.shape[-1]:
        return _by_rows(x, kernel)
    parts = x.reshape(num_parts, count // num_parts, *x.shape[1:])
    # Widened, for its gradient is their sum. Without checkpoints the copies would be made
    # beforehand and kept.
    wide = widened(kernel)
    y = jax.lax.map(
        jax.checkpoint(lambda part: _by_rows(part, wide.astype(part.dtype))),
        parts,
    )
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


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
