"""What NAM has learned and what it does: its weights by layer, its gates by image."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from nam_jax.attention.nam import ChannelNAM, SpatialNAM, attention_weights
from nam_jax.layers.dtypes import widened
from nam_jax.layers.gating import gate
from nam_jax.sparsity import NAM_SCALES, Scales, is_selected, path_names

Names = tuple[str, ...]

# A weight is small below this fraction of the mean of its layer.
SMALL_WEIGHT = 0.1
# The collection, and the variable in every module, that hold the gates of a call.
_GATES = "nam_gates"


def saliency(params: Any, *, scales: Scales = NAM_SCALES) -> dict[str, jax.Array]:
    """The weights of equations 2 and 3 in every NAM module of a network.

    W = |scale| / Σ|scale|

    A channel or pixel whose weight is near 0 has a gate that hardly depends on it.

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
      ValueError: a scale is stacked.

    Example:
      >>> import jax.numpy as jnp, nam_jax
      >>> params = {"attention": {"nam_bn": {"scale": jnp.array([1.0, -3.0])}}}
      >>> {path: w.tolist() for path, w in nam_jax.saliency(params).items()}
      {'attention': [0.25, 0.75]}

    Source: https://arxiv.org/abs/2111.12419, equations 2 and 3.
    """
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


def _check_not_stacked(names: Names, shapes: Mapping[Names, tuple[int, ...]]) -> None:
    """Refuses the scales of several layers in one array: their sum would be that of all."""
    axes = {"channel": 1, "spatial": 2}.get(names[-3] if len(names) > 2 else "")
    ndim = len(shapes[names])
    if ndim > (axes or 2) or (ndim == 2 and axes is None and _is_stacked(names, shapes)):
        raise ValueError(
            f"{'/'.join(names)}, of the shape {shapes[names]}, has the scales of several layers, "
            "stacked by nn.scan or vmap: call jax.vmap(nam_jax.saliency) with their parameters."
        )


def _is_stacked(names: Names, shapes: Mapping[Names, tuple[int, ...]]) -> bool:
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


def gates(
    module: nn.Module,
    variables: Any,
    x: jax.Array,
    *,
    mutable: str | Sequence[str] = (),
    **kwargs: Any,
) -> dict[str, jax.Array]:
    """The gates of every NAM module in a network, for some images.

    M = sigmoid(W BN(x))

    Args:
      module: Network with NAM inside, or a NAM module itself.
      variables: Variables of the module, `params` and `batch_stats`.
      x: Input of the module, (N, H, W, channels).
      mutable: Collections that the call may change: `"batch_stats"` in training.
      **kwargs: Further arguments of the module's call: `train=False` for the networks of
        `nam_jax.models`, `use_running_average=True` for a NAM module.

    Returns:
      Gates M, in [0, 1], not times `gate_scale`, by the path of their module, such as
      `layer1_0/attention/channel`: (N, H', W', C'), of the shape of what it gates, at least
      float32. Empty without NAM. Of a module that is called several times, each call has its
      number: `attention/0`.

    Raises:
      ValueError: gates are inside a lifted transformation that does not hand them on.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 8))
      >>> nam = nam_jax.NAM(use_running_average=True)
      >>> gates = nam_jax.gates(nam, nam.init(jax.random.key(0), x), x)
      >>> {path: gate.shape for path, gate in gates.items()}
      {'channel': (2, 4, 4, 8), 'spatial': (2, 4, 4, 8)}

    Source: https://arxiv.org/abs/2111.12419, equations 2 and 3.
    """
    called = set()

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = method(*args, **kwargs)
        owner = context.module
        if isinstance(owner, ChannelNAM | SpatialNAM) and context.method_name == "affine":
            called.add("/".join(owner.path))
            # A variable, for values cannot leave a rematerialised block in another way.
            owner.sow(_GATES, _GATES, gate(widened(args[0]), *output))
        return output

    changed = [mutable] if isinstance(mutable, str) else mutable
    with nn.intercept_methods(record):
        _, state = module.apply(variables, x, mutable=[_GATES, *changed], **kwargs)
    found = {"/".join(path[:-1]): m for path, m in flatten_dict(state.get(_GATES, {})).items()}
    if missing := sorted(called - found.keys()):
        raise ValueError(
            f"The gates of {', '.join(missing)} do not leave the nn.scan or nn.vmap around them: "
            f'add "{_GATES}": 0 to its variable_axes, for an axis of layers in front.'
        )
    return {
        path if len(calls) == 1 else f"{path}/{number}": m
        for path, calls in found.items()
        for number, m in enumerate(calls)
    }
