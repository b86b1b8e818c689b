"""Batch normalisation that can hand on the moments of its own output."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from flax.linen.module import merge_param
from flax.typing import Dtype, Initializer

from nam_jax.layers.dtypes import promoted, result_dtype, widened

AxisNames = str | Sequence[str]


class Affine(NamedTuple):
    """An array as a multiply-add of another: multiplier x + offset.

    Attributes:
      x: Array of any shape, at least float32.
      multiplier: Factor of x, of a shape that broadcasts to that of x.
      offset: Summand, of the shape of the multiplier.
    """

    x: jax.Array
    multiplier: jax.Array
    offset: jax.Array


class Moments(NamedTuple):
    """Mean and biased variance of an array over all axes but its features'.

    Attributes:
      mean: Mean, of the shape of the features' axes.
      var: Biased variance, of the shape of the mean.
      of: Where it is given, the array itself, unrounded, as BatchNorm computes it: attention can
        then be differentiated together with it, and reductions compute it a second time. The
        gradient through these joins the other one only behind BatchNorm's own reductions, which
        the compiler makes in fewer passes of each alone than of their sum.
      output: BatchNorm's output, rounded: only what is given this very array takes `of` for it, so
        that nothing is left out which stands between the two.
    """

    mean: jax.Array
    var: jax.Array
    of: Affine | None = None
    output: jax.Array | None = None


def to_reduce(x: jax.Array, moments: Moments | None) -> jax.Array:
    """x, as reductions over it should take it: see `Moments`.

    Raises:
      ValueError: the moments are those of an array of another shape.
    """
    affine = as_affine(x, moments)
    if affine is None:
        return x
    x, multiplier, offset = promoted(*affine)
    return multiplier * x + offset


def as_affine(x: jax.Array, moments: Moments | None) -> Affine | None:
    """The array as the multiply-add that it is; None where its moments do not tell, or of another.

    Raises:
      ValueError: the moments are those of an array of another shape.
    """
    if moments is None or moments.of is None:
        return None
    if moments.of.x.shape != x.shape:
        raise ValueError(
            f"The moments are those of an array of the shape {moments.of.x.shape}; x has the shape "
            f"{x.shape}. Leave moments out where x is not BatchNorm's own output."
        )
    return moments.of if moments.output is x else None


def batch_norm_affine(
    moments: Moments, scale: jax.Array, bias: jax.Array, *, epsilon: float = 1e-5
) -> tuple[jax.Array, jax.Array]:
    """Batch normalisation, equation 1 of NAM's paper, as one multiply-add.

    BN(x) = scale (x − mean) / sqrt(var + epsilon) + bias = multiplier x + offset

    In float32 the second form loses digits where |mean| is very much larger than sqrt(var): with a
    mean of 100 standard deviations it is exact to 5e-6.

    Args:
      moments: Mean and variance that normalise x.
      scale: Scales γ, of the shape of the mean.
      bias: Shifts β, of the shape of the mean.
      epsilon: Small positive number added to the variance.

    Returns:
      The multiplier and the offset, of the shape of the mean.
    """
    mean, var, scale, bias = promoted(moments.mean, moments.var, scale, bias)
    multiplier = scale * jax.lax.rsqrt(var + epsilon)
    return multiplier, bias - mean * multiplier


def batch_moments(x: jax.Array, axes: Sequence[int], axis_name: AxisNames | None = None) -> Moments:
    """Mean and biased variance over `axes`, in one pass over the data.

    mean = E[x],  var = max(0, E[x²] − E[x]²)

    In float32 both are finite as long as the sum of x² is, and nothing is left of a variance that
    is smaller than 1e-7 mean².

    Args:
      x: Array of any shape and floating dtype.
      axes: Axes to average over.
      axis_name: Mapped axis (or axes) of devices to average over as well.

    Returns:
      The moments, of the shape of the axes that remain, in float32 or wider.
    """
    x = widened(x)
    means = jnp.stack([x.mean(axes), jnp.square(x).mean(axes)])
    if axis_name is not None:
        means = jax.lax.pmean(means, axis_name)
    return moments_of_means(means)


def moments_of_means(means: jax.Array) -> Moments:
    """Moments from the means of an array and of its square, stacked."""
    mean, mean_of_squares = means
    return Moments(mean, jnp.maximum(0.0, mean_of_squares - jnp.square(mean)))


def running_average(value: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    """A running statistic after one more batch: momentum value + (1 − momentum) new."""
    value, new = promoted(value, new)
    return momentum * value + (1 - momentum) * new


def check_norm(momentum: float, epsilon: float) -> None:
    """Refuses what is no decay rate, and what may not be added to variances."""
    # What is traced is not known.
    if isinstance(momentum, numbers.Real) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum has to be in [0, 1]; got {momentum!r}.")
    if isinstance(epsilon, numbers.Real) and not epsilon >= 0:
        raise ValueError(f"epsilon has to be at least 0; got {epsilon!r}.")


def _check_moments(moments: Any, shape: tuple[int, ...]) -> None:
    """Refuses moments that are not of these features: others might broadcast."""
    if not isinstance(moments, Moments):
        raise ValueError(f"moments have to be nam_jax.Moments; got {type(moments).__name__}.")
    got = [jnp.shape(array) for array in (moments.mean, moments.var)]
    if got != [shape, shape]:
        raise ValueError(
            f"moments have to be mean and var of the shape {shape}; got {got[0]} and {got[1]}."
        )


class BatchNorm(nn.Module):
    """Batch normalisation that can hand on the moments of its output.

    .. math::
      y = scale (x − mean) / sqrt(var + epsilon) + bias

    Parameters (`scale`, `bias`), statistics (`mean` and biased `var` in `batch_stats`) and
    numbers are those of `flax.linen.BatchNorm`. In addition it returns the moments of y on
    request; they follow from the parameters and need no pass over y:

    .. math::
      E[y] = bias,  Var[y] = scale² var / (var + epsilon)

    Of Flax's fields `use_bias`, `use_scale`, `use_fast_variance`, `axis_index_groups` and
    `force_float32_reductions` (as it is always here) are missing, and `mask` at the call.

    Attributes:
      use_running_average: Whether to normalise with the running statistics instead of the
        batch's; given either here or at the call.
      axis: Feature axis or axes; statistics are taken over all others.
      momentum: Decay rate for the running statistics, in [0, 1].
      epsilon: Small positive number added to the variance.
      dtype: Dtype of the result (default: inferred from x and the parameters).
      param_dtype: Dtype of `scale` and `bias`.
      scale_init: Initialiser of `scale`.
      bias_init: Initialiser of `bias`.
      axis_name: Mapped axis (or axes) of devices that share their batch statistics.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> bn = nam_jax.BatchNorm(use_running_average=False)
      >>> x = jnp.arange(24.0).reshape(2, 2, 2, 3)
      >>> variables = bn.init(jax.random.key(0), x)
      >>> (y, moments), _ = bn.apply(variables, x, return_moments=True, mutable="batch_stats")
      >>> y.shape, moments.mean.shape
      ((2, 2, 2, 3), (3,))

    Source: S. Ioffe and C. Szegedy, Batch Normalization, 2015,
    https://arxiv.org/abs/1502.03167.
    """

    use_running_average: bool | None = None
    axis: int | Sequence[int] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros
    axis_name: AxisNames | None = None

    @overload
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        return_moments: Literal[False] = False,
    ) -> jax.Array: ...

    @overload
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        return_moments: Literal[True],
    ) -> tuple[jax.Array, Moments | None]: ...

    @overload
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        return_moments: bool,
    ) -> jax.Array | tuple[jax.Array, Moments | None]: ...

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        return_moments: bool = False,
    ) -> jax.Array | tuple[jax.Array, Moments | None]:
        """Normalises x.

        Args:
          x: Input (N, ..., C), with the default `axis`.
          use_running_average: The attribute of this name, unless given at construction.
          return_moments: Whether to return also the moments of the output, and in `moments.of` how
            it is computed.

        Returns:
          Normalised input y, of the shape of x; with `return_moments` the pair (y, moments), where
          moments is None under running statistics: those of this batch are then not known.

        Raises:
          ValueError: x has no such axis, a field is not as above, or use_running_average is given
            twice, or never.
        """
        wide = widened(x)
        moments = self.statistics(wide, use_running_average)
        dtype = result_dtype(x, *self._params().values(), dtype=self.dtype)
        y = self._normalize(wide, moments).astype(dtype)
        if not return_moments:
            return y
        if self._use_running_average(use_running_average):
            return y, None
        return y, self._output_moments(wide, moments)._replace(output=y)

    @nn.compact
    def statistics(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        moments: Moments | None = None,
    ) -> Moments:
        """The statistics that normalise x; updates the running ones in training.

        Args:
          x: Input (N, ..., C), with the default `axis`.
          use_running_average: The attribute of this name, unless given at construction.
          moments: Moments of x where they are known; x is then not read. Ignored under
            running statistics.

        Returns:
          The running statistics, or those of the batch, of the feature axes' shape.

        Raises:
          ValueError: moments are of another shape, a field is not as above, or see `__call__`.
        """
        check_norm(self.momentum, self.epsilon)
        feature_axes = self._feature_axes(x.ndim)
        shape = tuple(x.shape[axis] for axis in feature_axes)
        self.param("scale", self.scale_init, shape, self.param_dtype)
        self.param("bias", self.bias_init, shape, self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if self._use_running_average(use_running_average):
            return Moments(mean.value, var.value)
        if moments is not None:
            _check_moments(moments, shape)
        else:
            axes = tuple(axis for axis in range(x.ndim) if axis not in feature_axes)
            # No device axis exists yet where a module is initialised.
            axis_name = None if self.is_initializing() else self.axis_name
            moments = batch_moments(x, axes, axis_name)
        if not self.is_initializing():
            mean.value = running_average(mean.value, moments.mean, self.momentum)
            var.value = running_average(var.value, moments.var, self.momentum)
        return moments

    def _params(self) -> Mapping[str, jax.Array]:
        # By name: attention may be attached to this module, with parameters of its own below it.
        own = {name: self.variables["params"][name] for name in ("scale", "bias")}
        # Those of a partitioned initialiser are boxed, with the names of their axes.
        return meta.unbox(own)

    def _use_running_average(self, at_call: bool | None) -> bool:
        return merge_param("use_running_average", self.use_running_average, at_call)

    def _feature_axes(self, ndim: int) -> tuple[int, ...]:
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        if not all(-ndim <= axis < ndim for axis in axes):
            raise ValueError(
                f"BatchNorm's axis has to be from {-ndim} to {ndim - 1}, since x has {ndim} axes; "
                f"got {self.axis}."
            )
        return tuple(sorted(axis % ndim for axis in axes))

    def _broadcast(self, value: jax.Array, ndim: int) -> jax.Array:
        others = set(range(ndim)) - set(self._feature_axes(ndim))
        return jnp.expand_dims(value, tuple(sorted(others)))

    def _affine(self, x: jax.Array, moments: Moments) -> Affine:
        params = self._params()
        affine = batch_norm_affine(moments, params["scale"], params["bias"], epsilon=self.epsilon)
        return Affine(*promoted(x, *(self._broadcast(value, x.ndim) for value in affine)))

    def _normalize(self, x: jax.Array, moments: Moments) -> jax.Array:
        x, multiplier, offset = self._affine(x, moments)
        return multiplier * x + offset

    def _output_moments(self, x: jax.Array, moments: Moments) -> Moments:
        params = self._params()
        # Promoted: the square alone would overflow in float16.
        scale, bias, var = promoted(params["scale"], params["bias"], moments.var)
        var = scale * (var / (var + self.epsilon)) * scale
        return Moments(bias, var, self._affine(x, moments))
