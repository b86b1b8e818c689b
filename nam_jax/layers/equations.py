"""The equations of NAM as pure functions.

Y. Liu, Z. Shao, Y. Teng and N. Hoffmann, NAM: Normalization-based Attention Module, 2021,
https://arxiv.org/abs/2111.12419. Equation numbers below are the paper's.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax.core import meta

from nam_jax.layers.batch_norm import Moments, batch_norm_affine
from nam_jax.layers.dtypes import promoted, widened

Normalization = Literal["share", "mean"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)


def magnitude(scale: jax.Array) -> jax.Array:
    """|scale|, at least float32, with the gradient 0 at 0, where that of jnp.abs is 1."""
    scale = widened(meta.unbox(scale))
    return scale * jnp.sign(scale)


def attention_weights(
    scale: jax.Array, *, normalization: Normalization = "share", gradient: bool = False
) -> jax.Array:
    """The weights of equations 2 and 3: the share of each scale in their sum.

    share: W = |scale| / Σ|scale|;  mean: W = n |scale| / Σ|scale|;  0 where every scale is 0

    The paper writes γ / Σγ. The absolute values, as in the authors' code, keep W in [0, 1]
    when a scale turns negative. With shares the argument of a gate shrinks with the number n of
    scales, and the gates of n = 64 are within a few thousandths of 0.5; relative to their mean,
    which is not in the paper, weights are near 1 whatever n is.

    Args:
      scale: Scales γ (C,) or λ (H, W), n in all.
      normalization: What W is relative to: `share`, the sum of the scales, or `mean`, their mean.
      gradient: Whether gradients flow through W; the authors' code detaches it.

    Returns:
      The weights W, of the shape of scale, at least float32: in [0, 1], or for `mean` in [0, n].

    Raises:
      ValueError: there is no such normalization.

    Example:
      >>> import jax.numpy as jnp
      >>> from nam_jax.layers.equations import attention_weights
      >>> scale = jnp.array([1.0, -3.0])
      >>> print(attention_weights(scale), attention_weights(scale, normalization="mean"))
      [0.25 0.75] [0.5 1.5]
    """
    check_normalization(normalization)
    magnitudes = magnitude(scale)
    # A factor that all scales have in common changes nothing. Without that of the largest their
    # sum does not overflow, nor does its square, in the gradient, vanish.
    magnitudes /= _or_one(jax.lax.stop_gradient(magnitudes).max(initial=0))
    weights = magnitudes / _or_one(magnitudes.sum())
    if normalization == "mean":
        weights *= weights.size
    return weights if gradient else jax.lax.stop_gradient(weights)


def check_normalization(normalization: str) -> None:
    """Refuses what weights cannot be relative to."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization has to be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}."
        )


def _or_one(divisor: jax.Array) -> jax.Array:
    return jnp.where(divisor == 0, 1, divisor)


def gate_affine(
    moments: Moments,
    scale: jax.Array,
    bias: jax.Array,
    *,
    epsilon: float = 1e-5,
    normalization: Normalization = "share",
    weight_gradient: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The gates of equations 2 and 3, M = sigmoid(W BN(x)), with W folded into BN's multiply-add.

    M = sigmoid(multiplier x + offset)

    Args:
      moments: Mean and variance of every channel, (C,), or of every pixel, (H, W).
      scale: Scales γ (C,) or λ (H, W).
      bias: Shifts, of the shape of scale.
      epsilon: Small positive number added to the variance.
      normalization: What W is relative to, see `attention_weights`.
      weight_gradient: Whether gradients flow through W.

    Returns:
      The multiplier and the offset, of the shape of scale, at least float32.
    """
    weights = attention_weights(scale, normalization=normalization, gradient=weight_gradient)
    affine = batch_norm_affine(moments, scale, bias, epsilon=epsilon)
    weights, multiplier, offset = promoted(weights, *affine)
    return weights * multiplier, weights * offset
