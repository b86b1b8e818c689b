"""Triplet attention."""

import jax
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_rank, shared_fields
from nam_jax.attention.parts import PooledGate
from nam_jax.layers.batch_norm import Moments, to_reduce


class TripletAttention(AttentionModule, kw_only=True):
    """The mean of three gates, one for each pair of axes: y = (g_h + g_w + g_c) x / 3.

    .. math::
      g_a = sigmoid(BN(conv([max x, mean x])))

    with maximum and mean along the axis a. g_h gates the plane of W and C, g_w that of H and C,
    g_c that of H and W. The children `gate_h`, `gate_w` and `gate_c` have a convolution without
    bias, `conv`, and `bn`.

    Attributes:
      kernel_size: Height and width of the convolutions' kernels, odd.
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 32))
      >>> module = nam_jax.TripletAttention(use_running_average=True)
      >>> variables = module.init(jax.random.key(0), x)
      >>> module.apply(variables, x).shape, sorted(variables["params"])
      ((2, 4, 4, 32), ['gate_c', 'gate_h', 'gate_w'])

    Source: D. Misra, T. Nalamada, A. U. Arasanipalai and Q. Hou, Rotate to Attend:
    Convolutional Triplet Attention Module, 2020, https://arxiv.org/abs/2010.03045,
    section 3.
    """

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
          Gated input (g_h + g_w + g_c) x / 3, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or a hyper-parameter is out of its range.
        """
        check_rank(self, x)
        reduced = to_reduce(x, moments)
        fields = shared_fields(self, PooledGate)
        gate_h, gate_w, gate_c = (
            PooledGate(**fields, pooled_axis=axis, name=f"gate_{letter}")(
                reduced, use_running_average
            )
            for axis, letter in enumerate("hwc", start=1)
        )
        return self._gated(x, (gate_h + gate_w + gate_c) / 3)
