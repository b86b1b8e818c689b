"""NAM as linen modules: fields, dtypes, transformations and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import NAM, ChannelNAM, Moments, SpatialNAM
from tests.parity import (
    assert_close,
    formula,
    random_variables,
    sharded_train_step,
    train_step,
)

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
@pytest.mark.parametrize("running", [False, True])
def test_running_average_at_construction_or_at_call(module, running):
    x = image().astype(np.float32)
    variables = random_variables(module(), x, np.float32)
    built = module(use_running_average=running).apply(variables, x, mutable="batch_stats")
    called = module().apply(variables, x, use_running_average=running, mutable="batch_stats")
    other = module().apply(variables, x, use_running_average=not running, mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, built, called)
    assert not np.array_equal(built[0], other[0])


@each_module
def test_running_average_has_to_be_given_once(module):
    x = jnp.ones((2, 3, 3, 4))
    with pytest.raises(ValueError, match="use_running_average"):
        module().init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="use_running_average"):
        module(use_running_average=True).init(jax.random.key(0), x, use_running_average=True)


@each_module
def test_running_average_leaves_the_statistics_alone(module):
    x = image().astype(np.float32)
    variables = random_variables(module(), x, np.float32)
    _, update = module().apply(variables, x, True, mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, update["batch_stats"], variables["batch_stats"])


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
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_param_dtype_is_that_of_all_parameters(module, dtype):
    module = module(param_dtype=dtype)
    variables = module.init(jax.random.key(0), jnp.ones((2, 3, 3, 4)), use_running_average=True)
    assert dtypes(variables["params"]) == {dtype}
    assert dtypes(variables["batch_stats"]) == {"float32"}


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


@each_single
def test_bfloat16_costs_one_rounding_of_the_result(module):
    x = jnp.asarray(image((8, 3, 5, 16)), jnp.bfloat16)
    variables = random_variables(module(), x, np.float32)
    exact, exact_update = train(module(), variables, x.astype(jnp.float32))
    rounded, update = train(module(dtype=jnp.bfloat16), variables, x)
    assert rounded.dtype == jnp.bfloat16
    # Eight significant bits: rounding moves a value by at most 2⁻⁸ of it. A gate or
    # statistics in bfloat16 would add roundings of their own.
    assert (np.abs(rounded.astype(jnp.float32) - exact) <= 2.0**-8 * np.abs(exact)).all()
    assert_close(update, exact_update, 1e-6)


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
@pytest.mark.parametrize("running", [False, True])
def test_jit_changes_nothing(x64, module, running):
    x = image()
    variables = random_variables(module(), x)

    def apply(variables, x):
        return module().apply(variables, x, running, mutable="batch_stats")

    assert_close(jax.jit(apply)(variables, x), apply(variables, x))


@each_module
def test_four_devices_are_one_batch(x64, module):
    x, cotangent = image((8, 3, 5, 6)), image((8, 3, 5, 6), seed=1)
    variables = random_variables(module(), x)
    expected = train_step(module(), variables, x, cotangent)
    # Initialisation knows of no axis; nothing else than the name has to change.
    jax.tree.map(
        np.testing.assert_array_equal, random_variables(module(axis_name="data"), x), variables
    )
    actual = sharded_train_step(module(axis_name="data"), variables, x, cotangent)
    on_all = jax.tree.map(lambda value: np.stack([value] * 4), expected.statistics)
    assert_close(actual, expected._replace(statistics=on_all))


@each_module
def test_wrong_moments_are_ignored_under_running_statistics(module):
    x = image().astype(np.float32)
    variables = random_variables(module(), x, np.float32)
    moments = Moments(jnp.full(6, 7.0), jnp.full(6, 9.0))
    expected = module().apply(variables, x, use_running_average=True)
    actual = module().apply(variables, x, use_running_average=True, moments=moments)
    np.testing.assert_array_equal(actual, expected)
