"""BatchNorm: flax.linen's own numbers, and the moments that save attention a reduction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

import nam_jax
from nam_jax import ChannelNAM, Moments
from nam_jax.layers.batch_norm import batch_moments, to_reduce
from tests.helpers import arrays
from tests.helpers.arrays import (
    DTYPES,
    SHAPES,
    Bounded,
    assert_close,
    assert_moments,
    hard_arrays,
    in_float64,
    unit,
    wide,
)
from tests.helpers.networks import (
    image,
    random_variables,
    reductions,
    sharded_train_step,
    train_step,
)

SHAPE = (4, 3, 5, 6)
each_axis = pytest.mark.parametrize(
    "axis", [-1, (1, 2), pytest.param((2, 1), marks=pytest.mark.slow)]
)


@each_axis
def test_variables_are_those_of_flax(axis):
    x = image(SHAPE)
    ours, flax = (
        jax.jit(functools.partial(norm(axis=axis).init, use_running_average=False))(
            jax.random.key(0), x
        )
        for norm in (nam_jax.BatchNorm, nn.BatchNorm)
    )
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
    x, cotangent = (jnp.asarray(image(SHAPE, seed), x_dtype) for seed in (0, 1))
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
    x = image(SHAPE)
    ours, flax = (
        module(axis=axis, dtype=dtype, use_running_average=True)
        for module in (nam_jax.BatchNorm, nn.BatchNorm)
    )
    variables = random_variables(nn.BatchNorm(axis=axis), x, np.float32)
    actual, expected = (jax.jit(module.apply)(variables, x) for module in (ours, flax))
    assert actual.dtype == expected.dtype
    assert_close(actual, expected, 2.0**-7 if dtype == jnp.bfloat16 else 1e-6)


@each_axis
def test_four_devices_are_those_of_flax(x64, axis):
    x, cotangent = (image((8, 3, 5, 6), seed, np.float64) for seed in (0, 1))
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
    x = image(SHAPE, dtype=np.float64)
    bn = nam_jax.BatchNorm(axis=axis, use_running_average=False)
    variables = random_variables(nam_jax.BatchNorm(axis=axis), x)
    (y, moments), _ = bn.apply(variables, x, return_moments=True, mutable="batch_stats")
    assert_close(moments[:2], (np.mean(y, others), np.var(y, others)))
    assert_close(to_reduce(y, moments), y)


def test_running_statistics_tell_no_moments():
    x = image(SHAPE)
    bn = nam_jax.BatchNorm(use_running_average=True)
    variables = bn.init(jax.random.key(0), x)
    y, moments = bn.apply(variables, x, return_moments=True)
    assert moments is None
    np.testing.assert_array_equal(y, bn.apply(variables, x))


def test_moments_save_every_reduction():
    x = image(SHAPE)
    variables = random_variables(ChannelNAM(), x, np.float32)

    def apply(x, moments):
        return ChannelNAM().apply(variables, x, False, moments, mutable="batch_stats")

    moments = Moments(jnp.zeros(6), jnp.ones(6))
    assert reductions(apply, x, moments) > 0  # Σ|γ|: the walk finds what there is
    assert reductions(apply, x, moments, larger_than=6) == 0
    assert reductions(apply, x, None, larger_than=6) > 0


def test_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="from -4 to 3, since x has 4 axes; got 7"):
        nam_jax.BatchNorm(axis=7).init(jax.random.key(0), np.ones((2, 3, 3, 4)), True)


@pytest.mark.parametrize(
    "fields", [{"momentum": -0.1}, {"momentum": 3}, {"epsilon": -1.0}, {"epsilon": np.float32(-1)}]
)
@pytest.mark.parametrize("module", [nam_jax.BatchNorm, ChannelNAM, nam_jax.CBAM])
def test_fields_out_of_their_range_are_refused(module, fields):
    (name,) = fields
    with pytest.raises(ValueError, match=rf"^{name} has to be (in \[0, 1\]|at least 0); got "):
        module(**fields).init(jax.random.key(0), np.ones((2, 3, 3, 4)), True)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 4), (2, 4)])
def test_moments_of_another_shape_are_refused(shape):
    module, x = ChannelNAM(use_running_average=False), np.ones((2, 3, 3, 4))
    moments = Moments(np.zeros(shape), np.ones(shape))
    with pytest.raises(ValueError, match=r"mean and var of the shape \(4,\); got \("):
        module.init(jax.random.key(0), x, moments=moments)
    with pytest.raises(ValueError, match=r"have to be nam_jax\.Moments; got tuple"):
        module.init(jax.random.key(0), x, moments=tuple(moments))


# On hard arrays: equation 1 of NAM's paper, as far as each dtype is exact.


@functools.partial(jax.jit, static_argnums=2)
def normalised(params, x, axis):
    bn = nam_jax.BatchNorm(axis=axis, momentum=0.0, dtype=x.dtype, use_running_average=False)
    return bn.apply({"params": params}, x, return_moments=True, mutable="batch_stats")


def check_batch_norm(data, dtypes, shapes=SHAPES, normalised=normalised):
    axis, shape = data.draw(st.sampled_from([-1, (1, 2)])), data.draw(st.sampled_from(shapes))
    size, others = (shape[3:], (0, 1, 2)) if axis == -1 else (shape[1:3], (0, 3))
    params = {name: data.draw(hard_arrays(size, dtypes[1])) for name in ("scale", "bias")}
    x = data.draw(hard_arrays(shape, dtypes[0]))
    (y, of_y), update = normalised(params, x, axis)

    roundoff, exact = unit(wide(x.dtype)), Bounded(np.float64(x))
    of_x = arrays.moments(exact, others, roundoff)
    assert_moments(update["batch_stats"], exact, others, x.dtype)
    scale, bias = (np.expand_dims(np.float64(params[name]), others) for name in ("scale", "bias"))
    expected = arrays.batch_norm(exact, scale, bias, of_x, roundoff)
    assert expected.contains(to_reduce(of_y.output, of_y))
    # Where float16 overflows, the value itself does.
    assert arrays.rounded(expected, unit(x.dtype)).contains(y)
    np.testing.assert_array_equal(of_y.mean, params["bias"].astype(of_y.mean.dtype))
    var = arrays.var_of_batch_norm(scale, of_x, roundoff)
    assert var.contains(np.expand_dims(of_y.var, others))


@pytest.mark.faults
@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
@given(data=st.data())
def test_batch_norm_knows_its_own_moments(dtypes, data):
    check_batch_norm(data, dtypes)


@pytest.mark.faults
@given(data=st.data())
def test_batch_norm_knows_its_own_moments_without_compilation(data):
    # Compiled, XLA may leave out the rounding of what is in between.
    check_batch_norm(data, ("float16", "float16"), SHAPES[1:2], normalised.__wrapped__)


@pytest.mark.faults
@in_float64
@given(data=st.data())
def test_batch_norm_knows_its_own_moments_in_float64(x64, data):
    check_batch_norm(data, ("float64", "float64"))


@pytest.mark.faults
@given(signs=hard_arrays(SHAPES[1], "float32", ["normal", "negative"]).map(np.sign))
def test_moments_are_finite_while_the_sum_of_squares_is(signs):
    number = signs[..., 0].size
    x = signs * np.float32(0.999 * np.sqrt(float(np.finfo(np.float32).max) / number))
    assert_moments(
        batch_moments(x, (0, 1, 2))._asdict(), Bounded(np.float64(x)), (0, 1, 2), x.dtype
    )
