"""Arrays: how near two are, NAM's equations for them in NumPy, and those that are hard.

The equations stand here twice: `formula` as the paper writes them, and with bounds. There, in
float64, every value comes with a bound on the error of one that is computed in a narrower dtype,
in the forms that nam_jax documents: var = E[x²] − E[x]², BN(x) = multiplier x + offset. An
operation yields its exact result times 1 + δ, |δ| ≤ the unit roundoff of that dtype, and k of them
in a row (1 + δ)ᵏ. The sum of n terms, in any order, is n − 1 in a row for each term. What is
smaller than the least normal value may be flushed to 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FLUSHED = float(np.finfo(np.float32).tiny)
EPSILON = 1e-5
# In a row, per term of multiplier x + offset, all that is not a sum: variance + ε, rsqrt (two, and
# two more for a library's approximation), γ, W's two divisions and its product, x or mean, the sum
# of the terms, and the 0.5 of the gate.
OPERATIONS = 12
# The gate, 0.5 + 0.5 tanh(z / 2), is off by that of tanh, which no library has worse than four
# units in the last place, by half; the sum adds one.
GATE_UNITS = 5

# The fixture `x64` is the same for all examples.
in_float64 = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 4, 1, 7)]
# Of x and of the parameters.
DTYPES = [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")]

Normal = Callable[..., np.ndarray]

KINDS: dict[str, Callable[[Normal, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda normal, shape: normal(shape),
    "zeros": lambda normal, shape: np.zeros(shape),
    "negative": lambda normal, shape: -np.abs(normal(shape)),
    "some zeros": lambda normal, shape: np.maximum(normal(shape), 0),
    "constant channels": lambda normal, shape: normal(shape[-1:]) + np.zeros(shape),
    "far from zero": lambda normal, shape: 1000 + normal(shape),
    "one spike": lambda normal, shape: 1e4 * (normal(shape).argsort(None).reshape(shape) == 0),
    "huge": lambda normal, shape: 1e10 * normal(shape),
    "tiny": lambda normal, shape: 1e-30 * normal(shape),
    "subnormal": lambda normal, shape: 1e-40 * normal(shape),
    "all sizes": lambda normal, shape: normal(shape) * 10.0 ** (5 * normal(shape)).clip(-30, 10),
}


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Compares arrays, or trees of them, relative to the largest value expected."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    largest = max(np.abs(e).max() for _, e in pairs)
    assert largest > 0, "Only zeros are expected: a comparison relative to them says nothing."
    for a, e in pairs:
        assert a.shape == e.shape
        assert np.abs(np.asarray(a) - e).max() <= tolerance * largest


def formula(
    params: Any,
    x: np.ndarray,
    weights_of: Any = None,
    *,
    epsilon: float = 1e-5,
    normalization: str = "share",
) -> Any:
    """The three modules in training, in NumPy, straight from equations 1 to 3.

    The weights W come from the scales of weights_of, by default those of params.
    """
    weights_of = weights_of or params
    if "channel" in params:
        for name in ("channel", "spatial"):
            options = {"epsilon": epsilon, "normalization": normalization}
            x = formula(params[name], x, weights_of[name], **options)
        return x
    scale, bias = (np.asarray(params["nam_bn"][key]) for key in ("scale", "bias"))
    weights = np.abs(np.asarray(weights_of["nam_bn"]["scale"]))
    weights = weights / (weights.sum() if normalization == "share" else weights.mean())
    others = tuple(range(x.ndim - 1))
    if scale.ndim == 2:  # pixels: (H, W) against (N, H, W, C)
        scale, bias, weights = scale[..., None], bias[..., None], weights[..., None]
        others = (0, 3)
    normalised = (x - x.mean(others, keepdims=True)) / np.sqrt(
        x.var(others, keepdims=True) + epsilon
    )
    return x / (1 + np.exp(-weights * (scale * normalised + bias)))


class Bounded(NamedTuple):
    """A value and the most by which a computed one may differ from it."""

    value: np.ndarray
    error: Any = 0.0

    def contains(self, computed: Any) -> bool:
        """Whether the computed values are within the bound, or infinite where it lets them be."""
        dtype = jnp.finfo(computed.dtype)
        is_near = np.abs(np.float64(computed) - self.value) <= self.error + float(dtype.tiny)
        may_overflow = np.abs(self.value) + self.error > float(dtype.max)
        return bool((is_near | np.isinf(np.float64(computed)) & may_overflow).all())


class BoundedMoments(NamedTuple):
    """Mean and variance, with the axes that they are taken over kept at size 1."""

    mean: Bounded
    var: Bounded


def unit(dtype: Any) -> float:
    """The unit roundoff of a dtype."""
    return float(jnp.finfo(dtype).eps) / 2


def wide(dtype: Any) -> Any:
    """The dtype that the library promises to compute in."""
    return jnp.promote_types(dtype, jnp.float32)


def growth(operations: int, roundoff: float) -> float:
    """The relative error of so many operations in a row; float64 itself rounds as well."""
    total = operations * (roundoff + unit(np.float64))
    return total / (1 - total)


def moments(x: Bounded, axes: tuple[int, ...], roundoff: float) -> BoundedMoments:
    """Mean and variance of equation 1."""

    def average(value: Any) -> np.ndarray:
        return np.broadcast_to(value, x.value.shape).mean(axes, keepdims=True)

    # Of n values; with a square, the division, and the product that some compilers make of it.
    rounding = growth(x.value.size // average(x.value).size + 2, roundoff)
    mean, square = average(x.value), average(x.value**2)
    mean_error = average(x.error) + rounding * average(np.abs(x.value) + x.error) + FLUSHED
    square_error = average(2 * np.abs(x.value) * x.error + np.square(x.error))
    square_error = square_error + rounding * (square + square_error) + FLUSHED
    square_of_mean_error = (2 * np.abs(mean) + mean_error) * mean_error
    difference_error = growth(2, roundoff) * (
        square + square_error + (np.abs(mean) + mean_error) ** 2
    )
    var_error = square_error + square_of_mean_error + difference_error
    return BoundedMoments(
        Bounded(mean, mean_error), Bounded(x.value.var(axes, keepdims=True), var_error)
    )


def assert_moments(actual: Any, x: Bounded, axes: tuple[int, ...], dtype: Any) -> None:
    """Compares computed mean and variance of an array of this dtype."""
    for name, value in moments(x, axes, unit(wide(dtype)))._asdict().items():
        assert value.contains(np.expand_dims(actual[name], axes)), name


def batch_norm(
    x: Bounded,
    scale: np.ndarray,
    bias: np.ndarray,
    of: BoundedMoments,
    roundoff: float,
    weight: Any = 1.0,
) -> Bounded:
    """W BN(x): equation 1, and the product in equations 2 and 3."""
    root = 1 / np.sqrt(of.var.value + EPSILON)
    least = 1 / np.sqrt(of.var.value + of.var.error + EPSILON)
    most = 1 / np.sqrt(np.maximum(of.var.value - of.var.error, 0) + EPSILON)
    root_error = np.maximum(root - least, most - root)
    centred = x.value - of.mean.value
    centred_error = x.error + of.mean.error
    carried = (np.abs(centred) + centred_error) * root_error + root * centred_error
    # The mean is not subtracted from x: what cancels in the end was rounded before.
    terms = np.abs(x.value) + x.error + np.abs(of.mean.value) + of.mean.error
    rounded = np.abs(scale) * (root + root_error) * terms + np.abs(bias)
    in_a_row = growth(OPERATIONS + scale.size, roundoff)  # the latter for the sum in W
    return Bounded(
        weight * (scale * centred * root + bias),
        weight * (np.abs(scale) * carried + in_a_row * rounded + FLUSHED * terms),
    )


def var_of_batch_norm(scale: np.ndarray, of: BoundedMoments, roundoff: float) -> Bounded:
    """The variance of BN(x): γ² var / (var + ε)."""
    least = np.maximum(of.var.value - of.var.error, 0)
    most = of.var.value + of.var.error
    exact = np.square(scale) * of.var.value / (of.var.value + EPSILON)
    carried = np.square(scale) * EPSILON * (most - least) / ((most + EPSILON) * (least + EPSILON))
    return Bounded(exact, carried + growth(OPERATIONS, roundoff) * (exact + carried))


def weights(scale: np.ndarray) -> np.ndarray:
    """W of equations 2 and 3, of absolute values as in the authors' code; 0 for zeros alone."""
    total = np.abs(scale).sum()
    return np.abs(scale) / total if total else np.zeros_like(scale)


def attention(
    x: Bounded, params: Any, roundoff: float, of: BoundedMoments | None = None
) -> Bounded:
    """Equation 2, for parameters (C,), or 3, for (H, W): the gated x."""
    scale, bias = (np.asarray(params["nam_bn"][name], np.float64) for name in ("scale", "bias"))
    axes, weight = (0, 1, 2), weights(scale)
    if scale.ndim == 2:
        axes, scale, bias, weight = (0, 3), scale[..., None], bias[..., None], weight[..., None]
    z = batch_norm(x, scale, bias, of or moments(x, axes, roundoff), roundoff, weight)
    return gated(x, z, roundoff)


def tied_attention(x: Bounded, scale: np.ndarray, roundoff: float) -> Bounded:
    """Equation 2 where x is itself the output of the batch normalisation."""
    weight, in_a_row = weights(np.float64(scale)), growth(OPERATIONS + scale.size, roundoff)
    z = weight * x.value
    return gated(x, Bounded(z, weight * x.error + in_a_row * np.abs(z)), roundoff)


def gated(x: Bounded, z: Bounded, roundoff: float) -> Bounded:
    """sigmoid(z) x."""
    gate = 1 / (1 + np.exp(np.minimum(-z.value, 700)))
    # The slope of the sigmoid is a quarter at most.
    gate_error = np.minimum(z.error / 4, 1) + GATE_UNITS * growth(1, roundoff)
    y = x.value * gate
    y_error = np.abs(x.value) * gate_error + x.error * (gate + gate_error)
    return Bounded(y, y_error + growth(1, roundoff) * (np.abs(y) + y_error))


def rounded(x: Bounded, roundoff: float) -> Bounded:
    """After rounding to a narrower dtype."""
    return Bounded(x.value, x.error + growth(1, roundoff) * (np.abs(x.value) + x.error))


def hard_array(
    rng: np.random.Generator, kind: str, shape: tuple[int, ...], dtype: Any
) -> np.ndarray:
    """An array of one of the kinds, as far as the dtype holds it; nothing in it is infinite."""
    largest = float(jnp.finfo(dtype).max)
    return KINDS[kind](rng.standard_normal, shape).clip(-largest, largest).astype(dtype)


def hard_arrays(
    shape: tuple[int, ...], dtype: Any, kinds: Sequence[str] = tuple(KINDS)
) -> st.SearchStrategy[np.ndarray]:
    """Arrays of some kinds."""
    rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)
    return st.builds(hard_array, rngs, st.sampled_from(kinds), st.just(shape), st.just(dtype))
