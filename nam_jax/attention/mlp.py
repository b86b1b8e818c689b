"""The two linear layers by which SE, BAM and CBAM weigh channels."""

from collections.abc import Callable

import jax
from flax import linen as nn
from flax.typing import Dtype

from nam_jax.attention.base import check_at_least_1
from nam_jax.layers import initializers


def hidden_features(channels: int, reduction: int) -> int:
    """Features between two layers of so many channels: `reduction` times fewer, at least 1."""
    return max(1, channels // reduction)


class MLP(nn.Module, kw_only=True):
    """fc2(relu(norm(fc1(x)))), with `reduction` times fewer features between the two.

    Attributes:
      reduction: at least one feature is left.
      use_bias: of both layers.
      param_dtype: of the parameters.
    """

    reduction: int
    use_bias: bool
    param_dtype: Dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, norm: Callable[[jax.Array], jax.Array] = lambda x: x
    ) -> jax.Array:
        """Maps (..., C) to (..., C)."""
        check_at_least_1(self, "reduction")
        channels = x.shape[-1]
        x = norm(self._linear(x, hidden_features(channels, self.reduction), "fc1"))
        return self._linear(nn.relu(x), channels, "fc2")

    def _linear(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return nn.Dense(
            features,
            use_bias=self.use_bias,
            kernel_init=initializers.linear_kernel,
            bias_init=initializers.bias(x.shape[-1]),
            param_dtype=self.param_dtype,
            name=name,
        )(x)
