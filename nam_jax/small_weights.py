"""NAM weights so small that their channel or pixel hardly moves its gate."""

from typing import Any

import jax
import numpy as np

from nam_jax import saliency

# A weight is small below this part of the mean of its layer.
SMALL = 0.1

_saliency = jax.jit(saliency)


def count(weights: np.ndarray) -> int:
    """How many weights of a layer are small.

    W < SMALL / n

    Args:
      weights: W of all n channels or pixels, of any shape; their mean is 1 / n.

    Example:
      >>> import numpy as np
      >>> from train.small_weights import count
      >>> count(np.array([0.03, 0.07, 0.9]))
      1
    """
    return int((weights * weights.size < SMALL).sum())


def percentage(params: Any) -> float | None:
    """How many of all NAM weights of a network are small, in percent; None without NAM.

    Args:
      params: the parameters of a model.
    """
    # One program for all layers: one after another, each new shape would compile its own.
    weights = [np.asarray(w) for w in jax.device_get(_saliency(params)).values()]
    if not weights:
        return None
    return 100 * sum(map(count, weights)) / sum(w.size for w in weights)
