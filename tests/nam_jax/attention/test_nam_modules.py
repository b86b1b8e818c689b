"""NAM's BatchNorm: its fields, its statistics and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import NAM, ChannelNAM, Moments, SpatialNAM
from tests.helpers.parity import assert_close, formula, random_variables

each_module = pytest.mark.parametrize("module", [ChannelNAM, SpatialNAM, NAM])
each_single = pytest.mark.parametrize("module", [ChannelNAM, SpatialNAM])


def image(shape=(4, 3, 5, 6), seed=0):
    return 0.5 + 2 * np.random.default_rng(seed).standard_normal(shape)


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def train(module, variables, x):
    """Output and new statistics of a training call."""
    return jax.jit(
        lambda variables, x: module.apply(variables, x, False, mutable="batch_stats"),
    )(variables, x)


@each_module
def test_initialisation_is_neutral(module):
    # Scales 1, so that W is 1 over their number; statistics those of a normalised input,
    # whatever the input at initialisation was.
    variables = module().init(jax.random.key(0), image(), use_running_average=False)
    expected = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, expected[path[-1].key]))


@each_module
@pytest.mark.parametrize("momentum", [0.7, 1.0])
def test_momentum_decays_the_running_statistics(x64, module, momentum):
    x = image()
    variables = random_variables(module(), x)
    _, batch = train(module(momentum=0.0), variables, x)
    _, actual = train(module(momentum=momentum), variables, x)
    expected = jax.tree.map(
        lambda old, new: momentum * old + (1 - momentum) * new,
        variables["batch_stats"],
        batch["batch_stats"],
    )
    assert_close(actual["batch_stats"], expected)


def test_statistics_are_mean_and_biased_variance(x64):
    x = image()
    variables = random_variables(NAM(), x)
    _, update = train(NAM(momentum=0.0), variables, x)
    y, _ = train(ChannelNAM(), {"params": variables["params"]["channel"]}, x)
    expected = {
        "channel": {"nam_bn": {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}},
        # The pixels are those of the channel part's output.
        "spatial": {"nam_bn": {"mean": y.mean((0, 3)), "var": y.var((0, 3))}},
    }
    assert_close(update["batch_stats"], expected)


@each_module
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_epsilon_is_added_to_the_variance(x64, module, epsilon):
    x = image()
    module = module(epsilon=epsilon)
    variables = random_variables(module, x)
    y, _ = train(module, variables, x)
    assert_close(y, formula(variables["params"], x, epsilon=epsilon))


@each_module
@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_of_the_result(module, dtype, x_dtype):
    x = jnp.asarray(image(), x_dtype)
    variables = random_variables(module(), x, np.float32)
    y, update = jax.eval_shape(functools.partial(train, module(dtype=dtype)), variables, x)
    # By default that of the parameters, which are float32, as flax.linen.BatchNorm has it.
    assert y.dtype == (dtype or jnp.float32)
    assert dtypes(update) == {"float32"}


@each_module
def test_bfloat16_parameters_are_computed_with_in_float32(module):
    x = image().astype(np.float32)
    rounded = random_variables(module(), x, jnp.bfloat16)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    expected, _ = train(module(), {"params": params}, x)
    actual, _ = train(module(param_dtype=jnp.bfloat16), {"params": rounded}, x)
    assert_close(actual, expected, 1e-6)


@each_module
def test_float64_stays_float64(x64, module):
    x = image()
    variables = random_variables(module(), x, np.float32)
    y, update = jax.eval_shape(functools.partial(train, module()), variables, x)
    assert y.dtype == np.float64
    assert dtypes(update) == {"float64"}


@each_module
def test_wrong_moments_are_ignored_under_running_statistics(module):
    x = image().astype(np.float32)
    variables = random_variables(module(), x, np.float32)
    moments = Moments(jnp.full(6, 7.0), jnp.full(6, 9.0))
    expected = module().apply(variables, x, use_running_average=True)
    actual = module().apply(variables, x, use_running_average=True, moments=moments)
    np.testing.assert_array_equal(actual, expected)
