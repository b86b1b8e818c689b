"""BatchNorm: flax.linen's own numbers, and the moments that save attention a reduction."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import nam_jax
from nam_jax import CBAM, NAM, ChannelNAM, Moments, SpatialNAM, SqueezeExcite, TripletAttention
from tests.helpers.parity import (
    assert_close,
    random_variables,
    reductions,
    sharded_train_step,
    train_step,
)

each_axis = pytest.mark.parametrize("axis", [-1, (1, 2), (2, 1)])
each_attention = pytest.mark.parametrize("attention", [ChannelNAM, NAM])


def image(shape=(4, 3, 5, 6), dtype=np.float64, seed=0):
    return (0.5 + 2 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


@each_axis
def test_variables_are_those_of_flax(axis):
    x = image(dtype=np.float32)
    ours = nam_jax.BatchNorm(axis=axis).init(jax.random.key(0), x, use_running_average=False)
    flax = nn.BatchNorm(axis=axis).init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


def test_defaults_are_those_of_flax():
    ours, flax = nam_jax.BatchNorm(), nn.BatchNorm()
    fields = "use_running_average", "axis", "momentum", "epsilon", "dtype", "param_dtype"
    assert all(getattr(ours, field) == getattr(flax, field) for field in fields)


@each_axis
@pytest.mark.parametrize(
    ("dtype", "x_dtype"),
    [(None, jnp.float32), (jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)],
)
def test_training_step_is_that_of_flax(axis, dtype, x_dtype):
    options = {"momentum": 0.8, "epsilon": 0.1}  # the defaults are compared above
    x, cotangent = (jnp.asarray(image(seed=seed), x_dtype) for seed in (0, 1))
    ours = nam_jax.BatchNorm(axis=axis, dtype=dtype, **options)
    flax = nn.BatchNorm(axis=axis, dtype=dtype, **options)
    variables = random_variables(flax, x, np.float32)
    actual, expected = (train_step(module, variables, x, cotangent) for module in (ours, flax))
    assert actual.y.dtype == expected.y.dtype
    # Where float32 rounds differently, bfloat16 may fall on the neighbouring value.
    assert_close(actual.y, expected.y, 2.0**-7 if dtype == jnp.bfloat16 else 1e-6)
    assert_close(actual.statistics, expected.statistics, 1e-6)
    assert_close(actual.dparams, expected.dparams, 1e-6)
    assert_close(actual.dx, expected.dx, 2.0**-7 if x_dtype == jnp.bfloat16 else 1e-6)


@each_axis
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_evaluation_is_that_of_flax(axis, dtype):
    x = image(dtype=np.float32)
    ours, flax = (
        module(axis=axis, dtype=dtype, use_running_average=True)
        for module in (nam_jax.BatchNorm, nn.BatchNorm)
    )
    variables = random_variables(nn.BatchNorm(axis=axis), x, np.float32)
    actual, expected = ours.apply(variables, x), flax.apply(variables, x)
    assert actual.dtype == expected.dtype
    assert_close(actual, expected, 2.0**-7 if dtype == jnp.bfloat16 else 1e-6)


@each_axis
def test_four_devices_are_those_of_flax(x64, axis):
    x, cotangent = image((8, 3, 5, 6)), image((8, 3, 5, 6), seed=1)
    ours, flax = (
        module(axis=axis, axis_name="data") for module in (nam_jax.BatchNorm, nn.BatchNorm)
    )
    variables = random_variables(ours, x)
    actual = sharded_train_step(ours, variables, x, cotangent)
    assert_close(actual, sharded_train_step(flax, variables, x, cotangent))
    # And both are the whole batch on one device.
    expected = train_step(nn.BatchNorm(axis=axis), variables, x, cotangent)
    assert_close(actual.y, expected.y)
    assert_close((actual.dparams, actual.dx), (expected.dparams, expected.dx))


@pytest.mark.parametrize(("axis", "others"), [(-1, (0, 1, 2)), ((1, 2), (0, 3))])
def test_returned_moments_are_those_of_the_output(x64, axis, others):
    x = image()
    bn = nam_jax.BatchNorm(axis=axis, use_running_average=False)
    variables = random_variables(nam_jax.BatchNorm(axis=axis), x)
    (y, moments), _ = bn.apply(variables, x, return_moments=True, mutable="batch_stats")
    assert_close(moments, Moments(np.mean(y, others), np.var(y, others), of=y))


def test_returned_moments_are_those_of_all_devices(x64):
    # Statistics over the axis, so moments over the axis: Block would gate differently.
    x, cotangent = image((8, 3, 5, 6)), image((8, 3, 5, 6), seed=1)
    variables = random_variables(Block(NAM), x)
    actual = sharded_train_step(Block(NAM, axis_name="data"), variables, x, cotangent)
    expected = train_step(Block(NAM), variables, x, cotangent)
    on_all = jax.tree.map(lambda value: np.stack([value] * 4), expected.statistics)
    assert_close(actual, expected._replace(statistics=on_all))


def test_running_statistics_tell_no_moments():
    x = image(dtype=np.float32)
    bn = nam_jax.BatchNorm(use_running_average=True)
    variables = bn.init(jax.random.key(0), x)
    y, moments = bn.apply(variables, x, return_moments=True)
    assert moments is None
    np.testing.assert_array_equal(y, bn.apply(variables, x))


class Block(nn.Module):
    """The end of a network's block."""

    attention: Any
    hand_on: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        options = {"use_running_average": use_running_average, "axis_name": self.axis_name}
        x, moments = nam_jax.BatchNorm(**options, momentum=0.9)(x, return_moments=True)
        return self.attention(**options)(x, moments=moments if self.hand_on else None)


@pytest.mark.parametrize(
    "attention", [ChannelNAM, SpatialNAM, NAM, SqueezeExcite, CBAM, TripletAttention]
)
def test_moments_change_no_number(x64, attention):
    x, cotangent = image(), image(seed=1)
    variables = random_variables(Block(attention), x)
    actual = train_step(Block(attention, hand_on=True), variables, x, cotangent)
    expected = train_step(Block(attention, hand_on=False), variables, x, cotangent)
    assert_close(actual.y, expected.y)
    assert_close(actual.statistics, expected.statistics)
    assert_close((actual.dparams, actual.dx), (expected.dparams, expected.dx))
    assert_close(actual.dparams, expected.dparams)


@each_attention
def test_moments_are_used(attention):
    # The control of the test above: without it, modules that ignore them would pass.
    x = image(dtype=np.float32)
    variables = random_variables(attention(), x, np.float32)
    apply = jax.jit(lambda m: attention().apply(variables, x, False, m, mutable="batch_stats"))
    right = Moments(x.mean((0, 1, 2)), x.var((0, 1, 2)))
    wrong = Moments(x.mean((0, 1, 2)) + 1, x.var((0, 1, 2)))
    assert_close(apply(right), apply(None), 1e-5)
    assert not np.allclose(apply(wrong)[0], apply(None)[0], atol=1e-3)


@pytest.mark.parametrize("attention", [SpatialNAM, NAM, SqueezeExcite, CBAM, TripletAttention])
def test_reductions_read_the_array_of_the_moments(attention):
    x = image(dtype=np.float32)
    variables = random_variables(attention(), x, np.float32)
    apply = jax.jit(lambda m: attention().apply(variables, x, False, m, mutable="batch_stats"))
    moments = Moments(x.mean((0, 1, 2)), x.var((0, 1, 2)))
    right, wrong = (apply(moments._replace(of=of)) for of in (x, 2 * x + 1))
    assert_close(right, apply(moments), 1e-5)
    assert not np.allclose(wrong[0], right[0], atol=1e-3)


def test_moments_of_another_array_are_refused():
    x = image(dtype=np.float32)
    moments = Moments(jnp.zeros(6), jnp.ones(6), x[:1])
    with pytest.raises(ValueError, match=r"shape \(1, 3, 5, 6\); x has the shape \(4, 3, 5, 6\)"):
        SqueezeExcite().init(jax.random.key(0), x, False, moments)


def test_moments_save_every_reduction():
    x = image(dtype=np.float32)
    variables = random_variables(ChannelNAM(), x, np.float32)

    def apply(x, moments):
        return ChannelNAM().apply(variables, x, False, moments, mutable="batch_stats")

    moments = Moments(jnp.zeros(6), jnp.ones(6))
    assert reductions(apply, x, moments) > 0  # Σ|γ|: the walk finds what there is
    assert reductions(apply, x, moments, larger_than=6) == 0
    assert reductions(apply, x, None, larger_than=6) > 0


def test_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="axis 7 is not one of 4 axes"):
        nam_jax.BatchNorm(axis=7).init(jax.random.key(0), np.ones((2, 3, 3, 4)), True)
