"""Spatial NAM at another resolution."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from flax.core import meta, unfreeze

from nam_jax.attention.nam import SpatialNAM
from nam_jax.variables import TreePath, abstract_variables

# Names in a message.
_FEW = 5
# The collection that notes modules, and a part of the key of JAX's caches while they are noted.
_UNSCALED = "nam_unscaled"
_noting = jax.make_user_context(False)


def resize_spatial(
    variables: Any, module: nn.Module, input_shape: tuple[int, ...]
) -> dict[str, Any]:
    """Fits the scales of every spatial NAM to inputs of another size.

    A new pixel takes the mean of the old ones that it covers, each weighted by the area that
    is covered: λ, shift and statistics alike. λ and shift are then multiplied by
    H′W′ / (H W), for the weights W_λ shrink as the number of pixels grows, and every gate
    would flatten; weights relative to their mean (`normalization="mean"`) do not shrink, and
    nothing is multiplied. At the same size nothing changes, and an input in which every pixel is
    repeated k × k times has the gate repeated k × k times.

    Args:
      variables: Variables of the module, as trained; arrays, not traced.
      module: Network that is called with images, and with `train` if it takes it, or an attention
        module.
      input_shape: New shape of its input, (N, H, W, C).

    Returns:
      Variables for inputs of that shape; what is not of a spatial NAM is as it was.

    Raises:
      ValueError: the module's other variables do not have the shapes of these, or input_shape
        is not four whole numbers of at least 1.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> module = nam_jax.SpatialNAM(use_running_average=True)
      >>> variables = module.init(jax.random.key(0), jnp.ones((1, 7, 7, 8)))
      >>> variables = nam_jax.resize_spatial(variables, module, (1, 9, 9, 8))
      >>> module.apply(variables, jnp.ones((1, 9, 9, 8))).shape
      (1, 9, 9, 8)
    """
    is_whole = [isinstance(size, numbers.Integral) and size > 0 for size in input_shape]
    if is_whole != [True] * 4:
        raise ValueError(f"input_shape has to be (N, H, W, C), each at least 1; got {input_shape}.")
    variables = unfreeze(variables)
    wanted, unscaled = _wanted(module, input_shape)
    arrays = traverse_util.flatten_dict(meta.unbox(variables))
    resized = {
        path: _resized(leaf, wanted[path].shape, path[0] == "params" and path[1:-2] not in unscaled)
        if _is_spatial(path, wanted)
        else leaf
        for path, leaf in arrays.items()
    }
    differing = sorted(
        f"{'/'.join(path)} {_shape(resized, path)} instead of {_shape(wanted, path)}"
        for path in resized.keys() | wanted.keys()
        if _shape(resized, path) != _shape(wanted, path)
    )
    if differing:
        more = f" and {len(differing) - _FEW:,} more" if len(differing) > _FEW else ""
        raise ValueError(
            f"The variables are not of this module: {', '.join(differing[:_FEW])}{more}. Build the "
            "module as they were made, with the same attention and classes."
        )
    return meta.replace_boxed(variables, traverse_util.unflatten_dict(resized))


def _wanted(
    module: nn.Module, input_shape: tuple[int, ...]
) -> tuple[Mapping[TreePath, Any], set[TreePath]]:
    """The variables for inputs of a shape, and the modules whose weights do not shrink."""
    unscaled = set()

    def note(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output, owner = method(*args, **kwargs), context.module
        is_part = isinstance(owner, SpatialNAM) and context.method_name == "affine"
        if is_part and owner.normalization == "mean":
            unscaled.add(owner.path)
            # A variable as well: what nn.jit has traced before is not called again.
            owner.sow(_UNSCALED, "is_unscaled", 0)
        return output

    with _noting(True), nn.intercept_methods(note):
        variables = dict(abstract_variables(module, input_shape))
    noted = traverse_util.flatten_dict(variables.pop(_UNSCALED, {}))
    unscaled.update(path[:-1] for path in noted)
    return traverse_util.flatten_dict(meta.unbox(variables)), unscaled


def _shape(variables: Mapping[TreePath, Any], path: TreePath) -> Any:
    return variables[path].shape if path in variables else "none"


def _is_spatial(path: TreePath, wanted: Mapping[TreePath, Any]) -> bool:
    if path[-2] != "nam_bn" or path not in wanted:
        return False
    # Those of layers that are scanned have an axis of layers in front, also those of channels.
    return wanted[path].ndim >= 2 and "channel" not in path[-3].lower()


def _resized(leaf: Any, shape: tuple[int, ...], is_scaled: bool) -> Any:
    """A leaf for another map, times the growth of the number of pixels where that is due."""
    if leaf.shape == shape or leaf.shape[:-2] != shape[:-2]:
        return leaf
    old = np.asarray(leaf, np.float64)
    new = _means(_means(old, shape[-2], -2), shape[-1], -1)
    if is_scaled:
        new *= new.size / old.size
    return new.astype(leaf.dtype)


def _means(values: np.ndarray, parts: int, axis: int) -> np.ndarray:
    """The means of so many equal parts of an axis."""
    first = np.moveaxis(values, axis, 0)
    # With every value repeated as often as there are parts, none lies in two of them.
    means = first.repeat(parts, axis=0).reshape(parts, *first.shape).mean(axis=1)
    return np.moveaxis(means, 0, axis)
