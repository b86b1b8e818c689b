"""How convolutions and linear layers start: as in the authors' PyTorch code."""

from typing import Any

import jax
from flax import linen as nn
from flax.typing import Initializer

# Uniform in ±sqrt(6 / fan_in).
conv_kernel: Initializer = nn.initializers.he_uniform()

# Uniform in ±1 / sqrt(fan_in).
linear_kernel: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def bias(fan_in: int) -> Initializer:
    """Uniform in ±1 / sqrt(fan_in), as PyTorch initialises biases.

    Args:
      fan_in: Number of inputs of every output of the layer.
    """
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
