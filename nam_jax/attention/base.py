"""What all attention modules share."""

import dataclasses
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.typing import Dtype

from nam_jax.layers.batch_norm import AxisNames, BatchNorm
from nam_jax.layers.dtypes import promoted, result_dtype

# What the calls and the fields of modules name their mode, and whether they then normalise with the
# running statistics.
_MODES = {
    "use_running_average": True,
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
}


class AttentionModule(nn.Module, kw_only=True):
    """A module that gates its input; all are built and called alike.

    The fields here are those of every module, whether it has a BatchNorm or not; each adds
    its own hyper-parameters, by keyword. `module(x, use_running_average=…, moments=…)` returns
    an array of the shape of x. The moments are those of x itself: leave them out where anything
    stands between the BatchNorm that gave them and the module.

    Attributes:
      use_running_average: Whether to normalise with the running statistics instead of the
        batch's; given either here or at the call.
      dtype: Dtype of the result (default: inferred from x and the parameters). Gates are
        computed in float32 or wider.
      param_dtype: Dtype of the parameters.
      axis_name: Mapped axis (or axes) of devices that share their batch statistics.
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

    def _gated(self, x: jax.Array, gate: jax.Array) -> jax.Array:
        wide, gate = promoted(x, gate)
        return self._result(x, wide * gate)

    def _result(self, x: jax.Array, y: jax.Array) -> jax.Array:
        params = jax.tree.leaves(self.variables.get("params", {}))
        return y.astype(result_dtype(x, *params, dtype=self.dtype))


def shared_fields(module: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    """The fields of a module that a child of some kind has as well, to build it with."""
    own = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    names = own & {field.name for field in dataclasses.fields(kind)}
    return {name: getattr(module, name) for name in names}


def uses_running_average(*named: Mapping[str, Any]) -> bool | None:
    """Whether a module normalises with the running statistics, as the first name of a mode says.

    Args:
      *named: Arguments of its call, then its fields, by name.

    Returns:
      None where nothing tells of a mode.
    """
    for values in named:
        for name, is_running in _MODES.items():
            if values.get(name) is not None:
                return values[name] if is_running else not values[name]
    return None


def check_name(kind: str, name: str, names: Sequence[str]) -> None:
    """Refuses a name that is not one of several.

    Args:
      kind: What it is a name of.
      name: Name to be checked.
      names: Names that there are.

    Raises:
      ValueError: it is none of them.
    """
    if name not in names:
        raise ValueError(f"There is no {kind} {name!r}; choose one of {', '.join(names)}.")


def check_selector(name: str, value: Any) -> None:
    """Refuses an argument that selects by paths if it is no regular expression and no function."""
    if not callable(value):
        try:
            re.compile(value)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{name}={value!r} is no regular expression and no function of a path: {error}."
            ) from error


def check_rank(module: nn.Module, x: jax.Array) -> None:
    """Refuses the input of a module if it is no batch of maps or images."""
    if x.ndim != 4:
        name = type(module).__name__
        raise ValueError(f"{name} takes (N, H, W, C) arrays; got the shape {x.shape}.")


def check_scale(scale: Any, num_features: int) -> None:
    """Refuses a scale that is not that of a BatchNorm with so many channels."""
    shape = jnp.shape(meta.unbox(scale))
    if shape != (num_features,):
        raise ValueError(
            f"scale has to be that of the BatchNorm whose output x is, of the shape "
            f"({num_features},); got {shape}."
        )


def check_at_least_1(module: nn.Module, *names: str) -> None:
    """Refuses hyper-parameters that are no whole number of at least 1."""
    for name in names:
        value = getattr(module, name)
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} has to be a whole number of at least 1; got {value!r}.")


def check_odd(module: nn.Module, *names: str) -> None:
    """Refuses hyper-parameters that are no odd whole number of at least 1."""
    check_at_least_1(module, *names)
    for name in names:
        value = getattr(module, name)
        if value % 2 == 0:
            raise ValueError(f"{name} has to be odd; got {value}.")
