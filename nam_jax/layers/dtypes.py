"""The precision that statistics and gates are computed in."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype


def widened(x: jax.Array) -> jax.Array:
    """Converts x to float32 unless it is wider."""
    with jax.numpy_dtype_promotion("standard"):
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def promoted(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Converts arrays to the dtype and the number of axes that they have in common.

    Operations do so by themselves, except where `jax_numpy_dtype_promotion` or
    `jax_numpy_rank_promotion` forbid it.
    """
    dtype, ndim = result_dtype(*arrays), max(array.ndim for array in arrays)

    def with_axes(array: jax.Array) -> jax.Array:
        # Adding none takes time as well, and a network has thousands of these.
        missing = tuple(range(ndim - array.ndim))
        return jnp.expand_dims(array, missing) if missing else array

    return tuple(with_axes(array).astype(dtype) for array in arrays)


def result_dtype(*arrays: Any, dtype: Dtype | None = None) -> Dtype:
    """The given dtype, or else the one that the arrays have in common, whatever JAX forbids."""
    with jax.numpy_dtype_promotion("standard"):
        return canonicalize_dtype(*arrays, dtype=dtype)
