"""What all attention modules share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype

from nam_jax.batch_norm import AxisNames


class AttentionModule(nn.Module, kw_only=True):
    """A module that gates its input; all are built and called alike.

    `module(x, use_running_average=…, moments=…)` returns an array of the shape of x; a
    module without a BatchNorm takes the same fields and arguments, and needs none of them.

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

    def _gated(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        params = jax.tree.leaves(self.variables.get("params", {}))
        return (x * gate).astype(canonicalize_dtype(x, *params, dtype=self.dtype))


def shared_fields(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The fields of a module that a child of some kind has as well, to build it with."""
    own = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    names = own & {field.name for field in dataclasses.fields(kind)}
    return {name: getattr(module, name) for name in names}


def widened(x: jax.Array) -> jax.Array:
    """Converts x to float32 unless it is wider: what a gate is computed from."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
