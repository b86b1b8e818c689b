"""NAM as native NNX modules, on the pure functions of `nam_jax.layers.equations`.

They are built like `flax.nnx.BatchNorm` and follow `train()`, `eval()` and `nnx.view` as it does.
Variables have the paths that they have in linen: `nnx.update(module, variables["params"])`, and the
same with `"batch_stats"`, takes those of a linen module.
"""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from nam_jax.attention.base import check_scale
from nam_jax.layers.batch_norm import (
    AxisNames,
    Moments,
    batch_moments,
    check_norm,
    running_average,
)
from nam_jax.layers.dtypes import result_dtype
from nam_jax.layers.equations import (
    Normalization,
    attention_weights,
    check_normalization,
    gate_affine,
)
from nam_jax.layers.gating import check_gate_scale, gated, scaled


class Options(TypedDict, total=False):
    """What the modules are built with beside their sizes, by keyword.

    Attributes:
      use_running_average: Whether to normalise with the running statistics (default: False).
      momentum: Decay rate for the running statistics, in [0, 1] (0.9).
      epsilon: Small positive number added to the variance (1e-5).
      normalization: What the weights W are relative to: `share`, the sum of the scales, as in the
        paper; or `mean`, their mean, with weights larger by the number of scales (`share`).
      weight_gradient: Whether gradients flow through the weights W (False).
      gate_scale: Factor of the gate, above 0 (1). Fresh gates are near 0.5: with 2 a fresh module
        is nearly the identity, as a pretrained network needs it.
      dtype: Dtype of the result (None: inferred from x and the parameters).
      param_dtype: Dtype of the parameters (float32).
      axis_name: Mapped axis (or axes) of devices that share their batch statistics (None).
      rngs: Random keys, as every NNX module takes them; nothing is drawn from them.
    """

    use_running_average: bool
    momentum: float
    epsilon: float
    normalization: Normalization
    weight_gradient: bool
    gate_scale: float
    dtype: Dtype | None
    param_dtype: Dtype
    axis_name: AxisNames | None
    rngs: nnx.Rngs | None


class NormVariables(nnx.Module):
    """What a BatchNorm inside NAM owns: `nam_bn`, of channels, (C,), or of pixels, (H, W)."""

    def __init__(self, shape: Sequence[int], param_dtype: Dtype):
        self.scale = nnx.Param(jnp.ones(shape, param_dtype))
        self.bias = nnx.Param(jnp.zeros(shape, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(shape, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(shape, jnp.float32))


class NormalizationAttention(nnx.Module):
    """What both parts of NAM share: the options, the BatchNorm and its place in the gate."""

    def __init__(
        self,
        shape: Sequence[int],
        *,
        use_running_average: bool = False,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        normalization: Normalization = "share",
        weight_gradient: bool = False,
        gate_scale: float = 1.0,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        axis_name: AxisNames | None = None,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        check_normalization(normalization)
        check_gate_scale(gate_scale)
        check_norm(momentum, epsilon)
        self.nam_bn = NormVariables(shape, param_dtype)
        self.use_running_average = use_running_average
        self.momentum = momentum
        self.epsilon = epsilon
        self.normalization = normalization
        self.weight_gradient = weight_gradient
        self.gate_scale = gate_scale
        self.dtype = dtype
        self.axis_name = axis_name

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Gates x.

        Args:
          x: Input (N, H, W, C).
          use_running_average: The attribute of this name, where it is to be another.

        Returns:
          Gated input, of the shape of x.

        Raises:
          ValueError: x has not the number of channels, or the size, that the module is for.
        """
        y = self.gated(x, use_running_average)
        return y.astype(result_dtype(x, self.nam_bn.scale[...], dtype=self.dtype))

    def gated(self, x: jax.Array, use_running_average: bool | None) -> jax.Array:
        """The result of a call, unrounded."""
        raise NotImplementedError

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode; what `nnx.view` calls, and reads for `nnx.view_info`.

        Args:
          use_running_average: Whether to normalise with the running statistics; None: as before.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _affine(
        self, x: jax.Array, axes: Sequence[int], use_running_average: bool | None
    ) -> tuple[jax.Array, jax.Array]:
        if use_running_average is None:
            use_running_average = self.use_running_average
        norm = self.nam_bn
        if use_running_average:
            moments = Moments(norm.mean[...], norm.var[...])
        else:
            moments = batch_moments(x, axes, self.axis_name)
            for variable, new in ((norm.mean, moments.mean), (norm.var, moments.var)):
                average = running_average(variable[...], new, self.momentum)
                variable[...] = jax.lax.stop_gradient(average).astype(variable.dtype)
        return gate_affine(
            moments,
            norm.scale[...],
            norm.bias[...],
            epsilon=self.epsilon,
            normalization=self.normalization,
            weight_gradient=self.weight_gradient,
        )


class ChannelNAM(NormalizationAttention):
    """Channel attention from batch-norm scales: y = M_c x; see `nam_jax.ChannelNAM`.

    Args:
      num_features: Number of channels C.
      **options: See `Options`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nam_jax.nnx import ChannelNAM
      >>> module = ChannelNAM(8, rngs=nnx.Rngs(0))
      >>> module(jnp.ones((2, 4, 4, 8))).shape
      (2, 4, 4, 8)
    """

    def __init__(self, num_features: int, **options: Unpack[Options]):
        super().__init__((num_features,), **options)

    def check(self, x: jax.Array) -> None:
        """Refuses an input of other channels."""
        (num_features,) = self.nam_bn.scale.shape
        if x.shape[-1] != num_features:
            raise ValueError(
                f"ChannelNAM is for {num_features} channels; got {x.shape[-1]}. Feed it as many, "
                f"or build it with num_features={x.shape[-1]}."
            )

    def gated(self, x: jax.Array, use_running_average: bool | None) -> jax.Array:
        """The result of a call, unrounded."""
        self.check(x)
        affine = self._affine(x, tuple(range(x.ndim - 1)), use_running_average)
        return scaled(gated(x, *affine), self.gate_scale)


class SpatialNAM(NormalizationAttention):
    """Spatial attention from the scales of a pixel normalisation: see `nam_jax.SpatialNAM`.

    Args:
      map_size: Height and width of the maps, in pixels.
      **options: See `Options`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nam_jax.nnx import SpatialNAM
      >>> module = SpatialNAM((6, 10), rngs=nnx.Rngs(0))
      >>> module(jnp.ones((2, 6, 10, 8))).shape, module.nam_bn.scale.shape
      ((2, 6, 10, 8), (6, 10))
    """

    def __init__(self, map_size: Sequence[int], **options: Unpack[Options]):
        if not isinstance(map_size, Sequence) or len(map_size) != 2:
            raise ValueError(f"map_size has to be (height, width); got {map_size}.")
        super().__init__(map_size, **options)

    def check(self, x: jax.Array) -> None:
        """Refuses an input of another size."""
        map_size = self.nam_bn.scale.shape
        if x.ndim != 4 or x.shape[1:3] != map_size:
            height, width = map_size
            raise ValueError(
                f"SpatialNAM is for (N, {height}, {width}, C) arrays; got the shape {x.shape}. "
                "Feed it such arrays, or build it with the map_size of these."
            )

    def gated(self, x: jax.Array, use_running_average: bool | None) -> jax.Array:
        """The result of a call, unrounded."""
        self.check(x)
        affine = self._affine(x, (0, 3), use_running_average)
        return scaled(gated(x, *(value[..., None] for value in affine)), self.gate_scale)


class NAM(nnx.Module):
    """Normalization-based attention: channel attention, then spatial attention.

    .. math::
      y = M_s(z) z,  z = M_c(x) x

    See `nam_jax.NAM`.

    The children are `channel`, a ChannelNAM, and `spatial`, a SpatialNAM.

    Args:
      num_features: Number of channels C.
      map_size: Height and width of the maps, in pixels.
      **options: See `Options`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nam_jax.nnx import NAM
      >>> module = NAM(8, (4, 4), rngs=nnx.Rngs(0))
      >>> module.eval()  # as a whole model would be
      >>> module(jnp.ones((2, 4, 4, 8))).shape
      (2, 4, 4, 8)
    """

    def __init__(self, num_features: int, map_size: Sequence[int], **options: Unpack[Options]):
        self.channel = ChannelNAM(num_features, **options)
        self.spatial = SpatialNAM(map_size, **options)

    @property
    def dtype(self) -> Dtype | None:
        """Dtype of the result."""
        return self.spatial.dtype

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Gates x, (N, H, W, C), see `ChannelNAM` and `SpatialNAM`."""
        # Before the first changes its statistics.
        self.spatial.check(x)
        z = self.channel.gated(x, use_running_average)
        y = self.spatial.gated(z, use_running_average)
        params = (part.nam_bn.scale[...] for part in (self.channel, self.spatial))
        return y.astype(result_dtype(x, *params, dtype=self.dtype))


class TiedNAM(nnx.Module):
    """ChannelNAM in its parameter-free form: M_c = sigmoid(W_γ x), with the γ of a BatchNorm.

    Args:
      normalization: What W_γ is relative to, `share` or `mean`, see `Options`.
      weight_gradient: Whether gradients flow through W_γ.
      gate_scale: Factor of the gate, above 0, see `Options`.
      dtype: Dtype of the result (default: that of x).

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from nam_jax.nnx import TiedNAM
      >>> bn = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
      >>> TiedNAM()(bn(jnp.ones((2, 4, 4, 8))), scale=bn.scale[...]).shape
      (2, 4, 4, 8)
    """

    def __init__(
        self,
        *,
        normalization: Normalization = "share",
        weight_gradient: bool = False,
        gate_scale: float = 1.0,
        dtype: Dtype | None = None,
    ):
        check_normalization(normalization)
        check_gate_scale(gate_scale)
        self.normalization = normalization
        self.weight_gradient = weight_gradient
        self.gate_scale = gate_scale
        self.dtype = dtype

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, scale: jax.Array
    ) -> jax.Array:
        """Gates x, (N, ..., C), the output of the BatchNorm with this scale, (C,)."""
        del use_running_average  # the same in both modes
        check_scale(scale, x.shape[-1])
        weights = attention_weights(
            scale, normalization=self.normalization, gradient=self.weight_gradient
        )
        y = scaled(gated(x, weights, jnp.zeros_like(weights)), self.gate_scale)
        return y.astype(result_dtype(x, dtype=self.dtype))
