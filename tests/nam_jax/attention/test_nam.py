"""NAM's numbers: an independent formula, the edge cases, its BatchNorm and the tied form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeCollectionNotFound
from jax.flatten_util import ravel_pytree

import nam_jax
from nam_jax import NAM, ChannelNAM, Moments, SpatialNAM
from nam_jax.attention import TiedNAM
from nam_jax.layers.equations import attention_weights
from tests.helpers.arrays import assert_close, formula
from tests.helpers.networks import image, random_variables, train_step
from tests.helpers.values import with_slow

SHAPE = (4, 3, 5, 6)
MODULES = [ChannelNAM, SpatialNAM, NAM]
each_module = pytest.mark.parametrize("module", MODULES)
# NAM stands for its parts.
mainly_both = with_slow("module", MODULES, (ChannelNAM, SpatialNAM))
each_normalization = pytest.mark.parametrize("normalization", ["share", "mean"])
# Where both have the same way to go, the one with more in it.
mainly_with_gradient = pytest.mark.parametrize(
    "weight_gradient", [pytest.param(False, marks=pytest.mark.slow), True]
)
each_norm = pytest.mark.parametrize("norm", [nn.BatchNorm, nam_jax.BatchNorm])


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@functools.partial(jax.jit, static_argnums=(0, 3))
def call(module, variables, x, use_running_average=False):
    """Output and new statistics."""
    return module.apply(variables, x, use_running_average, mutable="batch_stats")


def with_scales(params, function):
    """The parameters with function applied to every scale."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf) if path[-1].key == "scale" else leaf, params
    )


@each_module
@pytest.mark.parametrize(("sign", "normalization"), [(1, "share"), (-1, "share"), (-1, "mean")])
def test_training_output_is_the_formula(x64, module, sign, normalization):
    x = image((4, 5, 3, 6), dtype=np.float64)
    module = module(normalization=normalization)
    variables = random_variables(module, x)
    params = with_scales(variables["params"], lambda scale: sign * np.abs(scale))
    y, _ = call(module, {**variables, "params": params}, x)
    assert_close(y, formula(params, x, normalization=normalization))


@pytest.mark.parametrize(
    ("normalization", "weight_gradient"), [("share", False), ("share", True), ("mean", True)]
)
@mainly_both
def test_gradients_are_those_of_the_formula(x64, module, normalization, weight_gradient):
    x, cotangent = (image((2, 2, 3, 4), seed, np.float64) for seed in (0, 1))
    module = module(normalization=normalization, weight_gradient=weight_gradient)
    variables = random_variables(module, x)
    flat, unravel = ravel_pytree((variables["params"], x))

    def loss(flat):
        params, x = unravel(flat)
        # Detached weights are constants: they do not move with the scales.
        weights_of = params if weight_gradient else variables["params"]
        y = formula(params, np.asarray(x), weights_of, normalization=normalization)
        return (y * cotangent).sum()

    steps = 1e-5 * np.eye(flat.size)
    expected = unravel(np.array([(loss(flat + s) - loss(flat - s)) / 2e-5 for s in steps]))
    actual = train_step(module, variables, x, cotangent)
    assert_close(actual.dparams, expected[0], 1e-7)
    assert_close(actual.dx, expected[1], 1e-7)


def test_weights_are_shares_of_the_absolute_scales():
    # The paper's γ / Σγ would divide by zero here.
    np.testing.assert_array_equal(attention_weights(jnp.array([1.0, -1.0])), [0.5, 0.5])
    np.testing.assert_array_equal(attention_weights(jnp.array([-3.0, 0.0, 1.0])), [0.75, 0, 0.25])


@each_normalization
def test_weights_are_zero_where_all_scales_are(normalization):
    weights = attention_weights(jnp.zeros((2, 3)), normalization=normalization)
    np.testing.assert_array_equal(weights, np.zeros((2, 3)))


def test_another_normalization_is_refused():
    with pytest.raises(ValueError, match=r"^normalization has to be one of share, mean; got 'sum'"):
        attention_weights(jnp.ones(3), normalization="sum")


@each_normalization
def test_gates_spread_as_the_weights_say(normalization):
    # A standard normal input, and weights that are all 1 / 64, or 1.
    x = np.random.default_rng(0).standard_normal((8, 32, 32, 64), np.float32)
    module = ChannelNAM(use_running_average=True, normalization=normalization)
    statistics = nam_jax.gate_statistics(module, module.init(jax.random.key(0), x), x)[""]
    expected = {"share": 1 / 256, "mean": np.std(1 / (1 + np.exp(-x)))}[normalization]
    np.testing.assert_allclose(statistics.within, expected, rtol=0.01)


@mainly_with_gradient
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("module", "halvings"), [(ChannelNAM, 1), (SpatialNAM, 1), (NAM, 2)])
def test_zero_scales_open_the_gate_by_exactly_half(module, halvings, train, weight_gradient):
    x = image((3, 4, 5, 6))
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x, np.float32)
    variables["params"] = with_scales(variables["params"], np.zeros_like)
    y, _ = call(module, variables, x, not train)
    np.testing.assert_array_equal(y, x / 2**halvings)


@mainly_with_gradient
@mainly_both
def test_zero_scales_have_finite_gradients(module, weight_gradient):
    x = image((3, 4, 5, 6))
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x, np.float32)
    variables["params"] = with_scales(variables["params"], np.zeros_like)
    step = train_step(module, variables, x, np.ones_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert np.abs(step.dx).max() > 0


@mainly_with_gradient
@mainly_both
def test_one_pixel_of_one_image_trains(module, weight_gradient):
    # A variance of zero per channel and, of equal channels, per pixel; the reference fails.
    x = np.full((1, 1, 1, 6), 1.5, np.float32)
    module = module(weight_gradient=weight_gradient)
    variables = random_variables(module, x, np.float32)
    step = train_step(module, variables, x, np.ones_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert np.abs(step.dx).max() > 0


@mainly_both
def test_one_pixel_of_one_image_is_the_formula(x64, module):
    x = image((1, 1, 1, 6), dtype=np.float64)
    variables = random_variables(module(), x)
    y, _ = call(module(), variables, x)
    assert_close(y, formula(variables["params"], x))


@pytest.mark.parametrize("module", [SpatialNAM, NAM])
def test_another_map_size_is_refused_by_name(module):
    variables = random_variables(module(), image((2, 10, 6, 4)), np.float32)
    with pytest.raises(ValueError, match=r"initialised for 10×6 maps .*got 6×10"):
        jax.eval_shape(functools.partial(call, module()), variables, jnp.ones((2, 6, 10, 4)))


@pytest.mark.parametrize("module", [SpatialNAM, NAM])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 4, 4, 4, 3)])
def test_pixels_need_four_axes(module, shape):
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        jax.eval_shape(lambda: module().init(jax.random.key(0), jnp.ones(shape), True))


def test_channels_need_only_the_last_axis(x64):
    x = image((8, 3, 2, 5), dtype=np.float64)
    variables = random_variables(ChannelNAM(), x)
    expected = formula(variables["params"], x)
    y, _ = call(ChannelNAM(), variables, x.reshape(48, 5))
    assert_close(y.reshape(x.shape), expected)


# The factor of the gates.


@pytest.mark.parametrize("module", [ChannelNAM, SpatialNAM])
def test_gate_scale_multiplies_the_gate(x64, module):
    x = image(SHAPE, dtype=np.float64)
    variables = random_variables(module(), x)
    y, _ = call(module(gate_scale=3), variables, x)
    assert_close(y, 3 * formula(variables["params"], x))


def test_gate_scale_multiplies_both_gates(x64):
    x = image(SHAPE, dtype=np.float64)
    variables = random_variables(NAM(), x)
    params = variables["params"]
    y, update = call(NAM(gate_scale=3), variables, x)
    z, _ = call(ChannelNAM(gate_scale=3), {"params": params["channel"]}, x)
    assert_close(y, 3 * formula(params["spatial"], np.asarray(z)))
    spatial, own = (
        SpatialNAM(gate_scale=3),
        {name: tree["spatial"] for name, tree in variables.items()},
    )
    assert_close(update["batch_stats"]["spatial"], call(spatial, own, z)[1]["batch_stats"])


def test_gate_scale_multiplies_the_tied_gate(x64):
    x, scale = image(SHAPE, dtype=np.float64), image((6,), dtype=np.float64)
    actual = ChannelNAM(gate_scale=3).apply({}, x, scale=scale)
    assert_close(actual, 3 * np.asarray(ChannelNAM().apply({}, x, scale=scale)))


@each_module
def test_gate_scale_of_1_changes_nothing(module):
    x = image(SHAPE)
    variables = random_variables(module(), x, np.float32)
    programs = {
        str(jax.make_jaxpr(functools.partial(call, module(**options)))(variables, x))
        for options in ({}, {"gate_scale": 1})
    }
    assert len(programs) == 1
    doubled = jax.make_jaxpr(functools.partial(call, module(gate_scale=2)))(variables, x)
    assert programs.pop().count(" mul ") < str(doubled).count(" mul ")


@mainly_both
def test_fresh_module_of_gate_scale_2_is_nearly_the_identity(module):
    x = np.random.default_rng(0).standard_normal((2, 14, 14, 64)).astype(np.float32)
    fresh = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32),
        jax.eval_shape(lambda: module().init(jax.random.key(0), x, True)),
    )
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].key in ("bias", "mean") else leaf, fresh
    )
    y, _ = call(module(gate_scale=2), fresh, x, True)
    # |2 sigmoid(z) − 1| ≤ |z| / 2, where z is x / 64 in a channel, then y / 196 in a pixel.
    channel = np.abs(x) / 128
    pixel = np.abs(x) * (1 + channel) / 392
    assert (np.abs(y / x - 1) <= (1 + channel) * (1 + pixel) - 1 + 1e-6).all()


@each_module
@pytest.mark.parametrize("gate_scale", [0, -1, np.inf, np.nan])
def test_gate_scale_that_is_no_factor_is_refused(module, gate_scale):
    with pytest.raises(ValueError, match="gate_scale has to be above 0 and finite; got"):
        jax.eval_shape(
            lambda: module(gate_scale=gate_scale).init(jax.random.key(0), image(SHAPE), True)
        )


# The BatchNorm inside: its fields, its statistics and dtypes.


@each_module
def test_initialisation_is_neutral(module):
    # Scales 1, so that W is 1 over their number; statistics those of a normalised input,
    # whatever the input at initialisation was.
    init = jax.jit(lambda key: module().init(key, image(SHAPE), use_running_average=False))
    variables = init(jax.random.key(0))
    expected = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, expected[path[-1].key]))


@mainly_both
@pytest.mark.parametrize("momentum", [0.7, pytest.param(1.0, marks=pytest.mark.slow)])
def test_momentum_decays_the_running_statistics(x64, module, momentum):
    x = image(SHAPE, dtype=np.float64)
    variables = random_variables(module(), x)
    _, batch = call(module(momentum=0.0), variables, x)
    _, actual = call(module(momentum=momentum), variables, x)
    expected = jax.tree.map(
        lambda old, new: momentum * old + (1 - momentum) * new,
        variables["batch_stats"],
        batch["batch_stats"],
    )
    assert_close(actual["batch_stats"], expected)


def test_statistics_are_mean_and_biased_variance(x64):
    x = image(SHAPE, dtype=np.float64)
    variables = random_variables(NAM(), x)
    _, update = call(NAM(momentum=0.0), variables, x)
    y, _ = call(ChannelNAM(), {"params": variables["params"]["channel"]}, x)
    expected = {
        "channel": {"nam_bn": {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}},
        # The pixels are those of the channel part's output.
        "spatial": {"nam_bn": {"mean": y.mean((0, 3)), "var": y.var((0, 3))}},
    }
    assert_close(update["batch_stats"], expected)


@mainly_both
@pytest.mark.parametrize("epsilon", [pytest.param(1e-5, marks=pytest.mark.slow), 0.3])
def test_epsilon_is_added_to_the_variance(x64, module, epsilon):
    x = image(SHAPE, dtype=np.float64)
    module = module(epsilon=epsilon)
    variables = random_variables(module, x)
    y, _ = call(module, variables, x)
    assert_close(y, formula(variables["params"], x, epsilon=epsilon))


@each_module
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_of_the_result(module, dtype, x_dtype):
    x = jnp.asarray(image(SHAPE), x_dtype)
    variables = random_variables(module(), x, np.float32)
    y, update = jax.eval_shape(functools.partial(call, module(dtype=dtype)), variables, x)
    # By default that of the parameters, which are float32, as flax.linen.BatchNorm has it.
    assert y.dtype == (dtype or jnp.float32)
    assert dtypes(update) == {"float32"}


@mainly_both
def test_bfloat16_parameters_are_computed_with_in_float32(module):
    x = image(SHAPE)
    rounded = random_variables(module(), x, jnp.bfloat16)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    expected, _ = call(module(), {"params": params}, x)
    actual, _ = call(module(param_dtype=jnp.bfloat16), {"params": rounded}, x)
    assert_close(actual, expected, 1e-6)


@each_module
def test_float64_stays_float64(x64, module):
    x = image(SHAPE, dtype=np.float64)
    variables = random_variables(module(), x, np.float32)
    y, update = jax.eval_shape(functools.partial(call, module()), variables, x)
    assert y.dtype == np.float64
    assert dtypes(update) == {"float64"}


@mainly_both
def test_wrong_moments_are_ignored_under_running_statistics(module):
    x = image(SHAPE)
    variables = random_variables(module(), x, np.float32)
    moments = Moments(jnp.full(6, 7.0), jnp.full(6, 9.0))
    expected, _ = call(module(), variables, x, True)
    actual = jax.jit(module().apply, static_argnums=2)(variables, x, True, moments)
    np.testing.assert_array_equal(actual, expected)


# The parameter-free form: ChannelNAM with the scale of the BatchNorm that it gates.


class Tied(nn.Module):
    """A BatchNorm and the parameter-free attention over its output."""

    norm: type[nn.Module]
    weight_gradient: bool = False
    normalization: str = "share"

    @nn.compact
    def __call__(self, x, use_running_average):
        bn = self.norm(use_running_average=use_running_average, name="nam_bn")
        y = bn(x)
        options = {"normalization": self.normalization, "weight_gradient": self.weight_gradient}
        attention = ChannelNAM(**options, name="attention")
        return attention(y, scale=bn.variables["params"]["scale"])


@each_norm
@mainly_with_gradient
def test_tied_form_is_the_formula(x64, norm, weight_gradient):
    x, cotangent = (image(SHAPE, seed, np.float64) for seed in (0, 1))
    # Each value once.
    normalization = "mean" if weight_gradient else "share"
    module = Tied(norm, weight_gradient, normalization)
    variables = random_variables(module, x)

    def loss(params, x):
        bn = norm(use_running_average=False)
        y, _ = bn.apply({**variables, "params": params["nam_bn"]}, x, mutable="batch_stats")
        magnitude = jnp.abs(params["nam_bn"]["scale"])
        weights = magnitude / (magnitude.mean() if weight_gradient else magnitude.sum())
        weights = weights if weight_gradient else jax.lax.stop_gradient(weights)
        gated = y * jax.nn.sigmoid(weights * y)
        return (gated * cotangent).sum(), gated

    grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    step = train_step(module, variables, x, cotangent)
    assert_close(step.y, y)
    assert_close((step.dparams, step.dx), grads)


@each_norm
def test_tied_form_owns_nothing(norm):
    variables = random_variables(Tied(norm), image(SHAPE), np.float32)
    assert {name: list(tree) for name, tree in variables.items()} == {
        "params": ["nam_bn"],
        "batch_stats": ["nam_bn"],
    }


def test_tied_form_without_a_scale_is_refused():
    with pytest.raises(ValueError, match="nam_tied needs scale="):
        TiedNAM().init(jax.random.key(0), image(SHAPE), use_running_average=True)
    for shape in ((1,), (7,), (6, 6)):
        with pytest.raises(ValueError, match=r"that of the BatchNorm .* of the shape \(6,\); got"):
            TiedNAM().apply({}, image(SHAPE), scale=jnp.ones(shape))


@pytest.mark.parametrize("module", [ChannelNAM(), SpatialNAM()])
def test_missing_parameters_are_told_by_flax(module):
    with pytest.raises(ScopeCollectionNotFound, match="nam_bn"):
        module.apply({}, image(SHAPE), use_running_average=False, mutable="batch_stats")


@each_norm
def test_tied_form_without_scales_halves(norm):
    x = image(SHAPE)
    variables = random_variables(Tied(norm), x, np.float32)
    variables["params"]["nam_bn"]["scale"] *= 0
    expected = variables["params"]["nam_bn"]["bias"] / 2
    step = train_step(Tied(norm), variables, x, np.ones_like(x))
    np.testing.assert_array_equal(step.y, np.broadcast_to(expected, x.shape))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))


def test_tied_form_gates_in_float32():
    x = jnp.asarray(image(SHAPE), jnp.bfloat16)
    scale = np.random.default_rng(2).standard_normal(6).astype(np.float32)
    exact = ChannelNAM().apply({}, x.astype(jnp.float32), scale=scale)
    rounded = ChannelNAM(dtype=jnp.bfloat16).apply({}, x, scale=scale)
    assert rounded.dtype == jnp.bfloat16
    assert (np.abs(rounded.astype(jnp.float32) - exact) <= 2.0**-8 * np.abs(exact)).all()
