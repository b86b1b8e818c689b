"""What NAM has learned: its weights by layer."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nam_jax.attention.base import check_selector
from nam_jax.layers.equations import attention_weights
from nam_jax.sparsity import NAM_SCALES, Scales, is_selected, path_names
from nam_jax.variables import TreePath

# How modules with so many axes of scales are called, by `NAM` or by Flax.
_NAMES = {1: r"channel|ChannelNAM_\d+", 2: r"spatial|SpatialNAM_\d+"}
# A weight is small below this fraction of the mean of its layer.
SMALL_WEIGHT = 0.1


def saliency(params: Any, *, scales: Scales = NAM_SCALES) -> dict[str, jax.Array]:
    """The weights of equations 2 and 3 in every NAM module of a network.

    .. math::
      W = |scale| / Σ|scale|

    whatever the `normalization` of a module makes of it. A channel or pixel whose weight is near
    0 has a gate that hardly depends on it.

    Args:
      params: Parameters of a model. Those of stacked layers or of an ensemble, with one axis more,
        are for `jax.vmap(nam_jax.saliency)`.
      scales: Scales that weigh: a regular expression that matches all of a path such as
        `layer1_0/bn3/scale`, or a function that tells of a path whether it is meant.

    Returns:
      Weights W by the path of the module that owns the scale, such as `layer1_0/attention/channel`,
      in the order of the parameters: (C,) of channels, (H, W) of pixels, in [0, 1], with the
      sum 1, or all 0 where every scale is 0. Empty without NAM.

    Raises:
      ValueError: a scale is stacked, or scales is no regular expression and no function.

    Example:
      >>> import jax.numpy as jnp, nam_jax
      >>> params = {"attention": {"nam_bn": {"scale": jnp.array([1.0, -3.0])}}}
      >>> {path: w.tolist() for path, w in nam_jax.saliency(params).items()}
      {'attention': [0.25, 0.75]}

    Source: https://arxiv.org/abs/2111.12419, equations 2 and 3.
    """
    check_selector("scales", scales)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {tuple(path_names(path)): leaf.shape for path, leaf in leaves}
    weights = {}
    for path, scale in leaves:
        if is_selected(path, scales):
            *owner, _ = names = tuple(path_names(path))
            _check_not_stacked(names, shapes)
            weights["/".join(owner[:-1] if owner[-1:] == ["nam_bn"] else owner)] = (
                attention_weights(scale)
            )
    return weights


def _check_not_stacked(names: TreePath, shapes: Mapping[TreePath, tuple[int, ...]]) -> None:
    """Refuses the scales of several layers in one array: their sum would be that of all."""
    axes = None
    if len(names) > 2 and names[-2] == "nam_bn":
        axes = next((n for n, own in _NAMES.items() if re.fullmatch(own, names[-3])), None)
    ndim = len(shapes[names])
    if ndim > (axes or 2) or (ndim == 2 and axes is None and _is_stacked(names, shapes)):
        raise ValueError(
            f"{'/'.join(names)}, of the shape {shapes[names]}, has the scales of several layers, "
            "stacked by nn.scan or vmap: call jax.vmap(nam_jax.saliency) with their parameters."
        )


def _is_stacked(names: TreePath, shapes: Mapping[TreePath, tuple[int, ...]]) -> bool:
    """Whether all that is around a norm, in the nearest module with more in it, has its first axis.

    By themselves, the scales of a map look the same as those of the channels of several layers.
    """
    for end in range(len(names) - 2, -1, -1):
        around = [path for path in shapes if path[:end] == names[:end]]
        if any(path[:-1] != names[:-1] for path in around):
            return all(shapes[path][:1] == shapes[names][:1] for path in around)
    return False


_compiled_saliency = jax.jit(saliency)


def count_small_weights(weights: np.ndarray) -> int:
    """How many of a layer's weights are so small that they hardly move their gate.

    W < SMALL_WEIGHT / n

    Args:
      weights: Weights W of all n channels or pixels, of any shape; their mean is 1 / n.

    Example:
      >>> import numpy as np
      >>> from nam_jax.inspection import count_small_weights
      >>> count_small_weights(np.array([0.03, 0.07, 0.9]))
      1
    """
    return int((weights * weights.size < SMALL_WEIGHT).sum())


def small_weight_percentage(params: Any) -> float | None:
    """How many of all NAM weights of a network are small, in percent; None without NAM.

    Args:
      params: Parameters of a model.
    """
    # One program for all layers: one after another, each new shape would compile its own.
    weights = [np.asarray(w) for w in jax.device_get(_compiled_saliency(params)).values()]
    if not weights:
        return None
    return 100 * sum(map(count_small_weights, weights)) / sum(w.size for w in weights)
