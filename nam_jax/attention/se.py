"""Squeeze-and-excitation."""

import jax
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_rank, shared_fields
from nam_jax.attention.parts import MLP
from nam_jax.layers.batch_norm import Moments, to_reduce
from nam_jax.layers.dtypes import widened


class SqueezeExcite(AttentionModule, kw_only=True):
    """Channel attention from the mean of every channel: y = s x.

    .. math::
      s = sigmoid(W₂ relu(W₁ z)),  z = mean x

    The mean is that of each channel over the map. W₁, (C, C/reduction), and W₂, (C/reduction, C),
    have no bias here: `mlp/fc1`, `mlp/fc2`.

    Attributes:
      reduction: Number of channels for every feature between the two layers (at least one
        feature is left).
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`;
        nothing is normalised here.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 32))
      >>> module = nam_jax.SqueezeExcite()
      >>> variables = module.init(jax.random.key(0), x)
      >>> module.apply(variables, x).shape, variables["params"]["mlp"]["fc1"]["kernel"].shape
      ((2, 4, 4, 32), (32, 2))

    Source: J. Hu, L. Shen and G. Sun, Squeeze-and-Excitation Networks, 2017,
    https://arxiv.org/abs/1709.01507, section 3.
    """

    reduction: int = 16

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
    ) -> jax.Array:
        """Gates x.

        Args:
          x: Input (N, H, W, C).
          use_running_average: Not used: nothing is normalised.
          moments: Moments of x, as `nam_jax.BatchNorm` returns them, of which only the array
            `moments.of` is used, in place of x in reductions.

        Returns:
          Gated input s x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or a hyper-parameter is out of its range.
        """
        del use_running_average
        check_rank(self, x)
        pooled = widened(to_reduce(x, moments)).mean((1, 2), keepdims=True)
        mlp = MLP(**shared_fields(self, MLP), use_bias=False, name="mlp")
        return self._gated(x, nn.sigmoid(mlp(pooled)))
