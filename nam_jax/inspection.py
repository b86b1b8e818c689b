"""What NAM has learned and what it does: its weights by layer, its gates by image."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from nam_jax.attention.gating import gate
from nam_jax.attention.nam import ChannelNAM, SpatialNAM, attention_weights
from nam_jax.layers.dtypes import widened
from nam_jax.sparsity import is_nam_scale, path_names

# A weight is small below this fraction of the mean of its layer.
SMALL_WEIGHT = 0.1
# The collection, and the variable in every module, that hold the gates of a call.
_GATES = "nam_gates"


def saliency(params: Any) -> dict[str, jax.Array]:
    """The weights of equations 2 and 3 in every NAM module of a network.

    W = |scale| / Σ|scale|

    A channel or pixel whose weight is near 0 has a gate that hardly depends on it.

    Args:
      params: Parameters of a model.

    Returns:
      Weights W by the path of the module that owns the scale, such as `layer1_0/attention/channel`,
      in the order of the parameters: (C,) of channels, (H, W) of pixels, in [0, 1], with the
      sum 1, or all 0 where every scale is 0. Empty without NAM.

    Example:
      >>> import jax.numpy as jnp, nam_jax
      >>> params = {"attention": {"nam_bn": {"scale": jnp.array([1.0, -3.0])}}}
      >>> {path: w.tolist() for path, w in nam_jax.saliency(params).items()}
      {'attention': [0.25, 0.75]}

    Source: https://arxiv.org/abs/2111.12419, equations 2 and 3.
    """
    return {
        "/".join(path_names(path)[:-2]): attention_weights(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if is_nam_scale(path)
    }


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
      Gates M, in [0, 1], by the path of their module, such as `layer1_0/attention/channel`:
      (N, H', W', C'), of the shape of what it gates, at least float32. Empty without NAM.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 8))
      >>> nam = nam_jax.NAM(use_running_average=True)
      >>> gates = nam_jax.gates(nam, nam.init(jax.random.key(0), x), x)
      >>> {path: gate.shape for path, gate in gates.items()}
      {'channel': (2, 4, 4, 8), 'spatial': (2, 4, 4, 8)}

    Source: https://arxiv.org/abs/2111.12419, equations 2 and 3.
    """

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = method(*args, **kwargs)
        owner = context.module
        if isinstance(owner, ChannelNAM | SpatialNAM) and context.method_name == "affine":
            # A variable, for values cannot leave a rematerialised block in another way.
            owner.sow(_GATES, _GATES, gate(widened(args[0]), *output), reduce_fn=lambda _, m: m)
        return output

    changed = [mutable] if isinstance(mutable, str) else mutable
    with nn.intercept_methods(record):
        _, state = module.apply(variables, x, mutable=[_GATES, *changed], **kwargs)
    return {"/".join(path[:-1]): m for path, m in flatten_dict(state.get(_GATES, {})).items()}
