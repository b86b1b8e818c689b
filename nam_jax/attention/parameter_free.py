"""Attention without parameters: SimAM, and a constant as the control of all others."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from nam_jax.attention.base import AttentionModule, check_rank
from nam_jax.layers.batch_norm import Moments, batch_moments, to_reduce
from nam_jax.layers.dtypes import result_dtype, widened


class SimAM(AttentionModule, kw_only=True):
    """A gate for every value, from how far it is from the mean of its map: y = M x.

    .. math::
      M = sigmoid((x − μ)² / (4 (v + ε)) + 1/2)
      μ = mean x,  v = Σ (x − μ)² / (H W − 1)

    Mean and sum are those of a channel over the map of one image. ε is the λ of the paper. There
    are no parameters; gates are in [0.62, 1]. Where all values of a map are equal, v is 0 and M =
    sigmoid(1/2) = 0.62; so it is on maps of one pixel, for which the formula has 0/0. In float32
    all is finite as long as sums of x² over a map are.

    Attributes:
      epsilon: Small positive number added to the variance.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`; an image
        is normalised by itself alone, in training as in evaluation.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.array([0.0, 0.0, 0.0, 8.0]).reshape(1, 2, 2, 1)
      >>> print(jax.jit(nam_jax.SimAM().apply)({}, x).ravel().round(3))
      [0.    0.    0.    5.945]

    Source: L. Yang, R.-Y. Zhang, L. Li and X. Xie, SimAM: A Simple, Parameter-Free Attention
    Module for Convolutional Neural Networks, ICML 2021,
    https://proceedings.mlr.press/v139/yang21o.html, section 3.
    """

    epsilon: float = 1e-4

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
    ) -> jax.Array:
        """Gates x.

        Args:
          x: Input (N, H, W, C).
          use_running_average: Not used: no statistics are kept.
          moments: Moments of x, as `nam_jax.BatchNorm` returns them: the array `moments.of` is used
            in place of x in reductions, and the mean to lose fewer digits in them.

        Returns:
          Gated input M x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array.
        """
        del use_running_average
        check_rank(self, x)
        reduced = widened(to_reduce(x, moments))
        # Whatever is taken from all values, their variance is the same. With one of themselves, or
        # the mean of all images, E[x²] − E[x]² is exact however far from 0 the map is. On a TPU a
        # value of a map would have the whole of it written first: three passes more.
        origin = reduced[:, :1, :1] if moments is None else moments.mean[None, None, None]
        origin = jax.lax.stop_gradient(origin)
        mean, var = batch_moments(reduced - origin, (1, 2))[:2]
        pixels = x.shape[1] * x.shape[2]
        # Not Python's max: sizes that an export leaves open are compared with nothing.
        unbiased = var * (pixels / jax.core.max_dim(1, pixels - 1))
        # The root before the square: gradients would overflow from 1e12 on.
        factor = 0.5 * jax.lax.rsqrt(unbiased + self.epsilon)
        distance = (widened(x) - origin - mean[:, None, None]) * factor[:, None, None]
        y = widened(x) * nn.sigmoid(jnp.square(distance) + 0.5)
        return y.astype(result_dtype(x, dtype=self.dtype))


class HalfGate(AttentionModule, kw_only=True):
    """The constant 1/2 in the place of gates: y = x / 2.

    What attention gains over this is due to its gates. NAM's channel or spatial part with scales
    of 0 does the same; both, one after the other, halve twice.

    Attributes:
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`;
        nothing is normalised here.

    Example:
      >>> import jax.numpy as jnp, nam_jax
      >>> print(nam_jax.HalfGate().apply({}, jnp.full((1, 1, 1, 2), 3.0)))
      [[[[1.5 1.5]]]]
    """

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
    ) -> jax.Array:
        """Halves x.

        Args:
          x: Input (N, H, W, C).
          use_running_average: Not used: nothing is normalised.
          moments: Not used.

        Returns:
          x / 2.

        Raises:
          ValueError: x is no (N, H, W, C) array.
        """
        del use_running_average, moments
        check_rank(self, x)
        return (x / 2).astype(result_dtype(x, dtype=self.dtype))
