"""What all attention modules share."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype

from nam_jax.layers.batch_norm import AxisNames, BatchNorm


class AttentionModule(nn.Module, kw_only=True):
    """A module that gates its input; all are built and called alike.

    The fields here are those of every module, whether it has a BatchNorm or not; each adds
    its own hyper-parameters, by keyword. `module(x, use_running_average=…, moments=…)` returns
    an array of the shape of x. The moments are those of x itself: leave them out where anything
    stands between the BatchNorm that gave them and the module.

    Attributes:
      use_running_average: normalise with the running statistics instead of the batch's;
        given either here or at the call.
      dtype: of the result (default: inferred from x and the parameters). Gates are
        computed in float32 or wider.
      param_dtype: of the parameters.
      axis_name: mapped axis (or axes) of devices that share their batch statistics.
    """

    use_running_average: bool | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    axis_name: AxisNames | None = None

    def _batch_norm(self, name: str, axis: int | Sequence[int] = -1) -> BatchNorm:
        """A child with the fields that this module has in common with it."""
        # Nothing inside a gate is rounded to the dtype of the result.
        fields = shared_fields(self, BatchNorm) | {"dtype": None}
        return BatchNorm(**fields, axis=axis, name=name)

    def _check_rank(self, x: jax.Array) -> None:
        if x.ndim != 4:
            name = type(self).__name__
            raise ValueError(f"{name} takes (N, H, W, C) arrays; got the shape {x.shape}.")

    def _gated(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        return self._result(x, x * gate)

    def _result(self, x: jax.Array, y: jax.Array) -> jax.Array:
        params = jax.tree.leaves(self.variables.get("params", {}))
        return y.astype(canonicalize_dtype(x, *params, dtype=self.dtype))


def shared_fields(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The fields of a module that a child of some kind has as well, to build it with."""
    own = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    names = own & {field.name for field in dataclasses.fields(kind)}
    return {name: getattr(module, name) for name in names}


def check_at_least_1(module: nn.Module, *names: str) -> None:
    """Refuses hyper-parameters that are no whole number of at least 1."""
    for name in names:
        value = getattr(module, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} has to be a whole number of at least 1; got {value!r}.")


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
    """Also the first place of the maximum, all in one reduction: for one pass over x."""
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
