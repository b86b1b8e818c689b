"""Normalization-based attention as modules, on the equations of `nam_jax.layers.equations`.

Y. Liu, Z. Shao, Y. Teng and N. Hoffmann, NAM: Normalization-based Attention Module, 2021,
https://arxiv.org/abs/2111.12419. Equation numbers below are the paper's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.linen.module import merge_param

from nam_jax.attention.base import AttentionModule, check_rank, check_scale, shared_fields
from nam_jax.layers import gating
from nam_jax.layers.batch_norm import Affine, BatchNorm, Moments, as_affine
from nam_jax.layers.dtypes import widened
from nam_jax.layers.equations import Normalization, attention_weights, gate_affine


class NormalizationAttention(AttentionModule, kw_only=True):
    """What the three modules share: the fields of their BatchNorm, of its weights and gates."""

    momentum: float = 0.9
    epsilon: float = 1e-5
    normalization: Normalization = "share"
    weight_gradient: bool = False
    gate_scale: float = 1.0

    def _map(self, x: jax.Array, moments: Moments | None) -> Affine:
        """The input as a multiply-add, of itself where its moments do not tell of what."""
        affine = as_affine(x, moments)
        wide = widened(jnp.asarray(x))
        # Not jnp.ones: under shard_map it has to differ by device, as x does.
        one = jax.lax.full_like(wide, 1, shape=wide.shape[-1:])
        return affine or Affine(wide, one, jnp.zeros_like(one))

    def _affine_of(self, bn: BatchNorm, moments: Moments) -> tuple[jax.Array, jax.Array]:
        params = meta.unbox(bn.variables["params"])
        return gate_affine(
            moments,
            params["scale"],
            params["bias"],
            epsilon=bn.epsilon,
            normalization=self.normalization,
            weight_gradient=self.weight_gradient,
        )


class ChannelNAM(NormalizationAttention, kw_only=True):
    """Channel attention from batch-norm scales: y = M_c x.

    .. math::
      M_c = sigmoid(W_γ BN(x)),  W_γ = |γ| / Σ|γ|

    This is equation 2. The scale γ is read from the variables of the module's own BatchNorm, its
    child `nam_bn`, or, in the parameter-free form, is that of the BatchNorm whose output x is:
    the module then owns nothing and M_c = sigmoid(W_γ x).

    Attributes:
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      normalization: What W_γ is relative to: `share`, the sum of the scales, as in the paper; or
        `mean`, their mean, with weights larger by the number of scales.
      weight_gradient: Whether gradients flow through W_γ. The authors' code detaches it;
        γ still learns through BN's own affine.
      gate_scale: Factor of the gate, above 0. Fresh gates are near 0.5: with 2 a fresh module
        is nearly the identity, as a pretrained network needs it.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 8))
      >>> module = nam_jax.ChannelNAM(use_running_average=True)
      >>> y = module.apply(module.init(jax.random.key(0), x), x)
      >>> y.shape
      (2, 4, 4, 8)

    Source: https://arxiv.org/abs/2111.12419, section 3, equations 1 and 2.
    """

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """Gates x.

        Args:
          x: Input (N, ..., C).
          use_running_average: The attribute of this name, unless given at construction.
          moments: Mean and variance of x per channel, as `nam_jax.BatchNorm` returns them
            for its output; the module then makes no pass over x to compute them, and where x is
            that very output is differentiated together with BatchNorm. They must be taken over the
            devices of `axis_name`. Under running statistics mean and variance are ignored.
          scale: Scale (C,) of the BatchNorm whose output x is: the parameter-free form.

        Returns:
          Gated input M_c x, of the shape of x.

        Raises:
          ValueError: scale or moments are not of as many channels as x; a field is not as above; or
            use_running_average is given twice, or never.
        """
        gate = self.affine(x, use_running_average, moments, scale)
        y = gating.gated_channels(*self._map(x, moments), *gate)
        return self._result(x, gating.scaled(y, self.gate_scale))

    @nn.compact
    def affine(
        self,
        x: jax.Array,
        use_running_average: bool | None,
        moments: Moments | None,
        scale: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Multiplier and offset of x in M_c's sigmoid, for the arguments of `__call__`."""
        if scale is not None:
            check_scale(scale, x.shape[-1])
            weights = attention_weights(
                scale, normalization=self.normalization, gradient=self.weight_gradient
            )
            return weights, jnp.zeros_like(weights)
        bn = self._batch_norm("nam_bn")
        return self._affine_of(bn, bn.statistics(x, use_running_average, moments))


class TiedNAM(ChannelNAM, kw_only=True):
    """ChannelNAM in its parameter-free form only: called without `scale` it raises."""

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
        scale: jax.Array | None = None,
    ) -> jax.Array:
        """Gates x by the scale of the BatchNorm whose output it is; see ChannelNAM.

        Raises:
          ValueError: scale is missing.
        """
        if scale is None:
            raise ValueError("nam_tied needs scale=, that of the BatchNorm whose output x is.")
        return super().__call__(x, use_running_average, moments, scale)


class SpatialNAM(NormalizationAttention, kw_only=True):
    """Spatial attention from the scales of a pixel normalisation: y = M_s x.

    .. math::
      M_s = sigmoid(W_λ BN_s(x)),  W_λ = |λ| / Σ|λ|

    This is equation 3. BN_s, the child `nam_bn`, normalises each of the H·W pixels over batch and
    channels and has one scale λ and one shift per pixel, so that the module is tied to the size
    of the map that it was initialised with.

    Attributes:
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      normalization: What W_λ is relative to: `share`, the sum of the scales, as in the paper; or
        `mean`, their mean, with weights larger by the number of scales.
      weight_gradient: Whether gradients flow through W_λ.
      gate_scale: Factor of the gate, above 0. Fresh gates are near 0.5: with 2 a fresh module
        is nearly the identity, as a pretrained network needs it.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 6, 10, 8))
      >>> module = nam_jax.SpatialNAM(use_running_average=True)
      >>> variables = module.init(jax.random.key(0), x)
      >>> variables["params"]["nam_bn"]["scale"].shape
      (6, 10)

    Source: https://arxiv.org/abs/2111.12419, section 3, equation 3.
    """

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
          moments: Moments of x, of which only `moments.of` is used, in place of x where x is
            BatchNorm's output: moments per channel say nothing about pixels.

        Returns:
          Gated input M_s x, of the shape of x.

        Raises:
          ValueError: x is no (N, H, W, C) array, or its map has not the size that the module was
            initialised for; or see `ChannelNAM`.
        """
        source, *affines = self._map(x, moments)
        y = self.gated(source, tuple(affines), use_running_average)
        return self._result(x, gating.scaled(y, self.gate_scale))

    def gated(
        self, x: jax.Array, affines: gating.Affines, use_running_average: bool | None
    ) -> jax.Array:
        """Gates z = `gating.normalized(x, *affines)`."""
        z = gating.normalized(x, *affines)
        is_running = merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        # Without parameters Flax says which are missing.
        if is_running or self.is_initializing() or not self.has_variable("params", "nam_bn"):
            return gating.gated_pixels(x, *affines, *self.affine(z, use_running_average))
        self._check_map(z)
        norm = gating.PixelNorm(
            self.epsilon, self.normalization, self.weight_gradient, self.axis_name
        )
        params = meta.unbox(self.variables["params"]["nam_bn"])
        y, moments = gating.gated_by_own_moments(norm, x, affines, params["scale"], params["bias"])
        self.affine(z, use_running_average, moments)
        return y

    @nn.compact
    def affine(
        self, x: jax.Array, use_running_average: bool | None, moments: Moments | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Multiplier and offset of x in M_s's sigmoid.

        Args:
          x: Input (N, H, W, C).
          use_running_average: The attribute of this name, unless given at construction.
          moments: Mean and variance of every pixel (H, W), where they are known.

        Returns:
          Both (H, W, 1).
        """
        self._check_map(x)
        bn = self._batch_norm("nam_bn", axis=(1, 2))
        multiplier, offset = self._affine_of(bn, bn.statistics(x, use_running_average, moments))
        return multiplier[..., None], offset[..., None]

    def _check_map(self, x: jax.Array) -> None:
        check_rank(self, x)
        own = meta.unbox(self.variables.get("params", {}).get("nam_bn"))
        if own is not None and own["scale"].shape != x.shape[1:3]:
            expected, actual = ("×".join(map(str, s)) for s in (own["scale"].shape, x.shape[1:3]))
            raise ValueError(
                f"SpatialNAM has one scale per pixel and was initialised for {expected} maps "
                f"(H×W); got {actual}. Feed it {expected} maps, or initialise the model with "
                f"inputs whose maps are {actual} here."
            )


class NAM(NormalizationAttention, kw_only=True):
    """Normalization-based attention: channel attention, then spatial attention.

    .. math::
      y = M_s(z) z,  z = M_c(x) x

    These are equations 2 and 3. The children are `channel`, a ChannelNAM, and `spatial`, a
    SpatialNAM.

    Attributes:
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      normalization: What W_γ and W_λ are relative to: `share`, the sum of the scales, as in the
        paper; or `mean`, their mean, with weights larger by the number of scales.
      weight_gradient: Whether gradients flow through W_γ and W_λ.
      gate_scale: Factor of either gate, above 0. Fresh gates are near 0.5: with 2 a fresh module
        is nearly the identity, as a pretrained network needs it.
      use_running_average, dtype, param_dtype, axis_name: see `AttentionModule`.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> x = jnp.ones((2, 4, 4, 8))
      >>> module = nam_jax.NAM()
      >>> variables = module.init(jax.random.key(0), x, use_running_average=False)
      >>> y, update = module.apply(
      ...     variables, x, use_running_average=False, mutable="batch_stats"
      ... )
      >>> y.shape, sorted(variables["params"])
      ((2, 4, 4, 8), ['channel', 'spatial'])

    Source: https://arxiv.org/abs/2111.12419, section 3.
    """

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
          moments: Mean and variance of x per channel, for the channel part, see ChannelNAM.

        Returns:
          Gated input M_s M_c x, of the shape of x.

        Raises:
          ValueError: x is not what SpatialNAM takes; or see `ChannelNAM`.
        """
        fields = shared_fields(self, NormalizationAttention)
        channel = ChannelNAM(**fields, name="channel").affine(x, use_running_average, moments)
        spatial = SpatialNAM(**fields, name="spatial")
        source, *affine = self._map(x, moments)
        # What the gate of channels lets through is scaled with what it is over.
        affine = [gating.scaled(value, self.gate_scale) for value in affine]
        multiplier, offset = channel
        gate = multiplier / self.gate_scale, offset
        y = spatial.gated(source, (*affine, *gate), use_running_average)
        return self._result(x, gating.scaled(y, self.gate_scale))
