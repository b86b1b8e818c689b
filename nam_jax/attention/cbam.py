"""The convolutional block attention module."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_rank, shared_fields
from nam_jax.attention.parts import MLP, PooledGate, mean_and_maximum
from nam_jax.layers.batch_norm import Moments, to_reduce
from nam_jax.layers.dtypes import promoted, widened


class CBAM(AttentionModule, kw_only=True):
    """Channel attention, then spatial attention: y = M_s(z) z,  z = M_c(x) x.

    .. math::
      M_c = sigmoid(MLP(mean x) + MLP(max x))
      M_s = sigmoid(BN(conv([max z, mean z])))

    with mean and maximum over the map in M_c, over the channels in M_s.

    The children are `channel`, the one MLP (`fc1`, ReLU, `fc2`, with biases), and `spatial`
    (`conv`, without bias, and `bn`).

    Attributes:
      reduction: Number of channels for every feature between the MLP's layers (at least one
        feature is left).
      kernel_size: Height and width of the convolution's kernel, odd.
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 32))
      >>> module = nam_jax.CBAM(use_running_average=True)
      >>> variables = module.init(jax.random.key(0), x)
      >>> module.apply(variables, x).shape, sorted(variables["params"])
      ((2, 4, 4, 32), ['channel', 'spatial'])

    Source: S. Woo, J. Park, J.-Y. Lee and I. S. Kweon, CBAM: Convolutional Block Attention
    Module, 2018, https://arxiv.org/abs/1807.06521, section 3; its code has the BatchNorm.
    """

    reduction: int = 16
    kernel_size: int = 7
    momentum: float = 0.99
    epsilon: float = 1e-5

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
          use_running_average: The attribute of this name, unless given at construction.
          moments: Moments of x, as `nam_jax.BatchNorm` returns them, of which only the array
            `moments.of` is used, in place of x in reductions.

        Returns:
          Gated input M_s M_c x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or a hyper-parameter is out of its range.
        """
        check_rank(self, x)
        reduced = to_reduce(x, moments)
        channel_gate = self._channel_gate(reduced)
        spatial = PooledGate(**shared_fields(self, PooledGate), pooled_axis=3, name="spatial")
        reduced, gate = promoted(reduced, channel_gate)
        spatial_gate = spatial(reduced * gate, use_running_average)
        return self._gated(x, channel_gate * spatial_gate)

    def _channel_gate(self, x: jax.Array) -> jax.Array:
        pooled = jnp.stack(mean_and_maximum(widened(x), (1, 2)))
        mlp = MLP(**shared_fields(self, MLP), use_bias=True, name="channel")
        return nn.sigmoid(mlp(pooled).sum(0))[:, None, None]
