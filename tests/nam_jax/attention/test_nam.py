"""NAM's numbers: an independent formula, and the edge cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nam_jax import NAM, ChannelNAM, SpatialNAM
from nam_jax.attention.nam import attention_weights
from tests.helpers.parity import assert_close, formula, random_variables, train_step, vectors

GOLDEN = {"nam_channel": ChannelNAM, "nam_spatial": SpatialNAM, "nam": NAM}
each_vector = pytest.mark.parametrize("name", GOLDEN)
each_module = pytest.mark.parametrize("module", GOLDEN.values())
each_gradient = pytest.mark.parametrize("weight_gradient", [False, True])


def image(*shape, seed=0):
    return 0.5 + 2 * np.random.default_rng(seed).standard_normal(shape)


def with_scales(params, function):
    """The parameters with function applied to every scale."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf) if path[-1].key == "scale" else leaf, params
    )


@each_vector
def test_reference_scales_have_both_signs(name):
    scales = [
        s
        for s in jax.tree.leaves(vectors(name, GOLDEN[name]()).variables["params"])
        if (s < 0).any()
    ]
    assert scales, "The vectors say nothing about the absolute values in W."


@each_module
@pytest.mark.parametrize("sign", [1, -1])
def test_training_output_is_the_formula(x64, module, sign):
    x = image(4, 5, 3, 6)
    variables = random_variables(module(), x)
    params = with_scales(variables["params"], lambda scale: sign * np.abs(scale))
    y, _ = module().apply({**variables, "params": params}, x, False, mutable="batch_stats")
    assert_close(y, formula(params, x))


@each_gradient
@each_module
def test_parameter_gradient_is_that_of_the_formula(x64, module, weight_gradient):
    x, cotangent = image(2, 2, 3, 4), image(2, 2, 3, 4, seed=1)
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x)
    flat, unravel = ravel_pytree(variables["params"])

    def loss(flat):
        params = unravel(flat)
        # Detached weights are constants: they do not move with the scales.
        weights_of = params if weight_gradient else variables["params"]
        return (formula(params, x, weights_of) * cotangent).sum()

    steps = 1e-5 * np.eye(flat.size)
    expected = [(loss(flat + step) - loss(flat - step)) / 2e-5 for step in steps]
    actual = train_step(module, variables, x, cotangent).dparams
    assert_close(ravel_pytree(actual)[0], np.array(expected), 1e-7)


@each_gradient
@each_module
def test_input_gradient_is_that_of_the_formula(x64, module, weight_gradient):
    x, cotangent = image(2, 2, 3, 2), image(2, 2, 3, 2, seed=1)
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x)

    def loss(x):
        return (formula(variables["params"], x) * cotangent).sum()

    steps = 1e-5 * np.eye(x.size).reshape(-1, *x.shape)
    expected = [(loss(x + step) - loss(x - step)) / 2e-5 for step in steps]
    actual = train_step(module, variables, x, cotangent).dx
    assert_close(actual.reshape(-1), np.array(expected), 1e-7)


def test_weights_are_shares_of_the_absolute_scales():
    # The paper's γ / Σγ would divide by zero here.
    np.testing.assert_array_equal(attention_weights(jnp.array([1.0, -1.0])), [0.5, 0.5])
    np.testing.assert_array_equal(attention_weights(jnp.array([-3.0, 0.0, 1.0])), [0.75, 0, 0.25])


def test_weights_are_zero_where_all_scales_are():
    np.testing.assert_array_equal(attention_weights(jnp.zeros((2, 3))), np.zeros((2, 3)))


@each_gradient
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("module", "halvings"), [(ChannelNAM, 1), (SpatialNAM, 1), (NAM, 2)])
def test_zero_scales_open_the_gate_by_exactly_half(module, halvings, train, weight_gradient):
    x = image(3, 4, 5, 6).astype(np.float32)
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x, np.float32)
    variables["params"] = with_scales(variables["params"], np.zeros_like)
    y, _ = module.apply(variables, x, not train, mutable="batch_stats")
    np.testing.assert_array_equal(y, x / 2**halvings)


@each_gradient
@each_module
def test_zero_scales_have_finite_gradients(module, weight_gradient):
    x = image(3, 4, 5, 6).astype(np.float32)
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x, np.float32)
    variables["params"] = with_scales(variables["params"], np.zeros_like)
    step = train_step(module, variables, x, np.ones_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert np.abs(step.dx).max() > 0


@each_gradient
@each_module
def test_one_pixel_of_one_image_trains(module, weight_gradient):
    # A variance of zero per channel and, of equal channels, per pixel; the reference fails.
    x = np.full((1, 1, 1, 6), 1.5, np.float32)
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x, np.float32)
    step = train_step(module, variables, x, np.ones_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert np.abs(step.dx).max() > 0


@each_module
def test_one_pixel_of_one_image_is_the_formula(x64, module):
    x = image(1, 1, 1, 6)
    variables = random_variables(module(), x)
    y, _ = module().apply(variables, x, False, mutable="batch_stats")
    assert_close(y, formula(variables["params"], x))


@pytest.mark.parametrize("module", [SpatialNAM, NAM])
def test_another_map_size_is_refused_by_name(module):
    variables = random_variables(module(), image(2, 10, 6, 4), np.float32)
    with pytest.raises(ValueError, match=r"initialised for 10×6 maps .*got 6×10"):
        module().apply(variables, jnp.ones((2, 6, 10, 4)), use_running_average=True)


@pytest.mark.parametrize("module", [SpatialNAM, NAM])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 4, 4, 4, 3)])
def test_pixels_need_four_axes(module, shape):
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        module().init(jax.random.key(0), jnp.ones(shape), use_running_average=True)


def test_channels_need_only_the_last_axis(x64):
    x = image(8, 3, 2, 5)
    variables = random_variables(ChannelNAM(), x)
    expected = formula(variables["params"], x)
    y, _ = ChannelNAM().apply(variables, x.reshape(48, 5), False, mutable="batch_stats")
    assert_close(y.reshape(x.shape), expected)
