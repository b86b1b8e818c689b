"""Attention with few parameters or none: SimAM where its variance is hard, half, ECA's kernel."""

import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import nam_jax
from nam_jax import ECA, HalfGate, SimAM, attention
from nam_jax.attention.eca import adaptive_kernel_size
from tests.helpers.arrays import assert_close
from tests.helpers.networks import image, random_variables
from tests.helpers.values import with_slow

# The gate where all values of a map are equal.
LEAST = 1 / (1 + np.exp(-0.5))


def formula(x):
    """SimAM as its paper has it, in float64; maps have at least two pixels."""
    x = np.float64(x)
    squares = (x - x.mean((1, 2), keepdims=True)) ** 2
    var = squares.sum((1, 2), keepdims=True) / (x.shape[1] * x.shape[2] - 1)
    return x / (1 + np.exp(-(squares / (4 * (var + 1e-4)) + 0.5)))


@pytest.mark.parametrize("module", [SimAM(), HalfGate()])
def test_dtype_is_that_of_the_input_whatever_is_attached(module):
    model = nam_jax.attach(nn.Sequential([module]), "eca", after="layers_0")
    x = jnp.ones((2, 4, 4, 8), jnp.bfloat16)
    y, _ = model.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16


@jax.jit
def value_and_gradient(x):
    y, pull = jax.vjp(lambda x: SimAM().apply({}, x), x)
    return y, pull(jnp.ones_like(y))[0]


@pytest.mark.parametrize("far", [0.0, 1e3, -1e5])
@pytest.mark.parametrize("spike", [0.0, 1e4])
def test_simam_is_exact_in_float32_wherever_the_map_lies(far, spike):
    x = (far + image((2, 6, 5, 4))).astype(np.float32)
    # The first value is that from which all are measured.
    x[0, 0, 0] += np.float32(spike)
    actual, _ = value_and_gradient(x)
    np.testing.assert_allclose(actual, formula(x), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1000.1, 1e10, 1e16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 2), (2, 1, 1, 2)])
def test_constant_maps_and_single_pixels_are_scaled_by_one_number(value, shape):
    y, gradient = value_and_gradient(jnp.full(shape, value, jnp.float32))
    np.testing.assert_allclose(y, np.full(shape, np.float32(value) * LEAST), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.full(shape, LEAST), rtol=1e-6)


def test_single_pixels_are_scaled_by_the_number_of_constant_maps():
    x = image((2, 1, 1, 2))
    np.testing.assert_allclose(value_and_gradient(x)[0], x * LEAST, rtol=1e-6)


@pytest.mark.parametrize("size", [1e10, 1e13, 1e16])
def test_simam_of_huge_values_is_finite_and_has_a_finite_gradient(size):
    x = jnp.asarray(size * image((2, 6, 5, 4)), jnp.float32)
    y, gradient = value_and_gradient(x)
    np.testing.assert_allclose(y, formula(x), rtol=1e-5)
    assert np.isfinite(gradient).all()


@with_slow("dtype", [jnp.bfloat16, jnp.float16], [jnp.float16])
def test_moments_are_not_rounded_to_the_dtype_of_the_input(dtype):
    x = jnp.asarray(200 + image((2, 6, 5, 4)), dtype)
    y = jax.jit(SimAM().apply)({}, x)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.float64(y), formula(x), rtol=float(jnp.finfo(dtype).eps))


@with_slow("name", ["nam_channel", "nam_spatial"], ["nam_spatial"])
def test_half_is_what_nam_does_with_scales_of_zero(x64, name):
    module, x = attention(name)(use_running_average=True), image((2, 3, 5, 4), dtype=np.float64)
    variables = random_variables(attention(name)(), x)
    zeros = jax.tree.map(np.zeros_like, variables["params"])
    half = HalfGate().apply({}, x)
    np.testing.assert_array_equal(half, x / 2)
    nam = jax.jit(module.apply)({**variables, "params": zeros}, x)
    assert_close(half, np.asarray(nam), 1e-12)


def test_simam_of_maps_of_open_size():
    height, width = jax.export.symbolic_shape("h, w")
    shape = jax.ShapeDtypeStruct((2, height, width, 4), jnp.float32)
    exported = jax.export.export(jax.jit(lambda x: SimAM().apply({}, x)))(shape)
    x = image((2, 6, 5, 4))
    np.testing.assert_allclose(exported.call(x), formula(x), rtol=1e-5)
    np.testing.assert_allclose(exported.call(x[:, :1, :1]), x[:, :1, :1] * LEAST, rtol=1e-6)


# ECA's kernel: how long it is, and what lies beyond the first and the last channel.


@pytest.mark.parametrize("channels", [*range(1, 70), 128, 255, 256, 1023, 1024, 2048, 2**20])
def test_kernel_size_is_the_nearest_odd_number(channels):
    wanted = (math.log2(channels) + 1) / 2
    size = adaptive_kernel_size(channels)
    assert size % 2 == 1
    # Half-way between two, as for 2048 channels, it is the larger.
    assert size - 1 <= wanted < size + 1


@pytest.mark.parametrize("kernel_size", [0, -1, 1.5])
def test_kernel_size_that_is_none_is_refused(kernel_size):
    with pytest.raises(ValueError, match="kernel_size has to be a whole number of at least 1"):
        ECA(kernel_size=kernel_size).init(jax.random.key(0), jnp.ones((1, 2, 2, 8)))


def test_gates_see_their_neighbours_and_zeros_at_the_ends():
    x = image((2, 3, 5, 4))
    kernel = np.float32([0.3, -0.2, 0.5])
    y = ECA(kernel_size=3).apply({"params": {"conv": {"kernel": kernel[:, None, None]}}}, x)
    mean = np.pad(x.mean((1, 2)), ((0, 0), (1, 1)))
    logits = sum(kernel[tap] * mean[:, tap : tap + 4] for tap in range(3))
    expected = x / (1 + np.exp(-logits))[:, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
