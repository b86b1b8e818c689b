"""NAM and BatchNorm on hard arrays: the paper's equations, as far as each dtype is exact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nam_jax
from nam_jax import NAM, ChannelNAM, SpatialNAM
from nam_jax.attention import TiedNAM
from nam_jax.attention.nam import attention_weights
from nam_jax.layers.batch_norm import batch_moments
from tests.helpers import bounded
from tests.helpers.bounded import Bounded, unit
from tests.helpers.hard_arrays import hard_arrays, in_float64

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 4), (3, 4, 1, 7)]
# Of x and of the parameters.
DTYPES = [("float32", "float32"), ("bfloat16", "float32"), ("float16", "float16")]
each_dtypes = pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
# All of them subnormal, scales are 0 where the processor takes such values for it.
SCALES = ["normal", "zeros", "negative", "some zeros", "one spike", "huge", "tiny", "all sizes"]


def wide(dtype):
    """The dtype that the library promises to compute in."""
    return jnp.promote_types(dtype, jnp.float32)


@st.composite
def cases(draw, dtypes, shapes=SHAPES):
    """Variables of NAM, x, and moments of its channels that are nearly its own."""
    shape = draw(st.sampled_from(shapes))
    x_dtype, param_dtype = dtypes
    variables = {"params": {}, "batch_stats": {}}
    for name, size in (("channel", shape[3:]), ("spatial", shape[1:3])):
        params = {
            "scale": draw(hard_arrays(size, param_dtype, SCALES)),
            "bias": draw(hard_arrays(size, param_dtype)),
        }
        statistics = {
            "mean": draw(hard_arrays(size, wide(x_dtype))),
            "var": np.abs(draw(hard_arrays(size, wide(x_dtype)))),
        }
        variables["params"][name] = {"nam_bn": params}
        variables["batch_stats"][name] = {"nam_bn": statistics}
    x = draw(hard_arrays(shape, x_dtype))
    exact = np.float64(x)
    moments = [
        value.astype(wide(x_dtype)) for value in (exact.mean((0, 1, 2)), exact.var((0, 1, 2)))
    ]
    return variables, x, nam_jax.Moments(*moments)


def part(variables, name):
    return {collection: tree[name] for collection, tree in variables.items()}


@jax.jit
def results(variables, x, moments):
    """What each module makes of x by the batch's statistics, the running ones, and given ones.

    And the gates by the running ones.
    """
    found = {}
    for name, module, own in (
        ("channel", ChannelNAM, part(variables, "channel")),
        ("spatial", SpatialNAM, part(variables, "spatial")),
        ("both", NAM, variables),
    ):
        nam = module(dtype=x.dtype, momentum=0.0)
        found[name, "batch"], update = nam.apply(own, x, False, mutable="batch_stats")
        found[name, "moments"] = update["batch_stats"]
        found[name, "running"] = nam.apply(own, x, True)
        found[name, "given"], _ = nam.apply(own, x, False, moments, mutable="batch_stats")
    tied = TiedNAM(dtype=x.dtype)
    scale = variables["params"]["channel"]["nam_bn"]["scale"]
    found["tied", "running"] = tied.apply({}, x, scale=scale)
    return found, nam_jax.gates(NAM(), variables, x, use_running_average=True)


def running(variables, name):
    statistics = variables["batch_stats"][name]["nam_bn"]
    return exact_moments(statistics["mean"], statistics["var"])


def exact_moments(*moments):
    kept = (np.float64(value)[..., None] if value.ndim == 2 else value for value in moments)
    return bounded.Moments(*(Bounded(np.float64(value)) for value in kept))


def expected(variables, x, moments):
    """The same by the paper, each with its bound."""
    params, exact, roundoff = variables["params"], Bounded(np.float64(x)), unit(wide(x.dtype))
    given = exact_moments(moments.mean, moments.var)
    found = {}
    for path, channel, spatial in (
        ("batch", None, None),
        ("running", running(variables, "channel"), running(variables, "spatial")),
        ("given", given, None),
    ):
        gated = bounded.attention(exact, params["channel"], roundoff, channel)
        found["channel", path] = gated
        found["spatial", path] = bounded.attention(exact, params["spatial"], roundoff, spatial)
        found["both", path] = bounded.attention(gated, params["spatial"], roundoff, spatial)
    scale = params["channel"]["nam_bn"]["scale"]
    found["tied", "running"] = bounded.tied_attention(exact, scale, roundoff)
    return {key: bounded.rounded(y, unit(x.dtype)) for key, y in found.items()}


def check_equations(case, results=results):
    variables, x, moments = case
    (actual, gates), by_the_paper = results(variables, x, moments), expected(variables, x, moments)
    for key, y in by_the_paper.items():
        assert (actual[key].shape, actual[key].dtype) == (x.shape, x.dtype)
        assert y.contains(actual[key]), key
    assert all(((gate >= 0) & (gate <= 1)).all() for gate in gates.values())
    product = np.float64(x) * np.float64(gates["channel"]) * np.float64(gates["spatial"])
    assert by_the_paper["both", "running"].contains(product)
    for name, axes in (("channel", (0, 1, 2)), ("spatial", (0, 3))):
        check_moments(actual[name, "moments"]["nam_bn"], Bounded(np.float64(x)), axes, x.dtype)
    assert all(np.isfinite(np.float64(leaf)).all() for leaf in jax.tree.leaves(actual))


def check_moments(actual, x, axes, dtype):
    for name, value in bounded.moments(x, axes, unit(wide(dtype)))._asdict().items():
        assert value.contains(np.expand_dims(actual[name], axes)), name


@each_dtypes
@given(data=st.data())
def test_nam_is_the_papers(dtypes, data):
    check_equations(data.draw(cases(dtypes)))


@given(case=cases(("float32", "float32"), SHAPES[1:2]))
def test_nam_is_the_papers_without_compilation(case):
    check_equations(case, results.__wrapped__)


@in_float64
@given(case=cases(("float64", "float64")))
def test_nam_is_the_papers_in_float64(x64, case):
    check_equations(case)


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
    of_x = bounded.moments(exact, others, roundoff)
    check_moments(update["batch_stats"], exact, others, x.dtype)
    scale, bias = (np.expand_dims(np.float64(params[name]), others) for name in ("scale", "bias"))
    expected = bounded.batch_norm(exact, scale, bias, of_x, roundoff)
    assert expected.contains(of_y.of)
    # Where float16 overflows, the value itself does.
    assert bounded.rounded(expected, unit(x.dtype)).contains(y)
    np.testing.assert_array_equal(of_y.mean, params["bias"].astype(of_y.mean.dtype))
    var = bounded.var_of_batch_norm(scale, of_x, roundoff)
    assert var.contains(np.expand_dims(of_y.var, others))


@each_dtypes
@given(data=st.data())
def test_batch_norm_knows_its_own_moments(dtypes, data):
    check_batch_norm(data, dtypes)


@given(data=st.data())
def test_batch_norm_knows_its_own_moments_without_compilation(data):
    # Compiled, XLA may leave out the rounding of what is in between.
    check_batch_norm(data, ("float16", "float16"), SHAPES[1:2], normalised.__wrapped__)


@in_float64
@given(data=st.data())
def test_batch_norm_knows_its_own_moments_in_float64(x64, data):
    check_batch_norm(data, ("float64", "float64"))


@given(signs=hard_arrays(SHAPES[1], "float32", ["normal", "negative"]).map(np.sign))
def test_moments_are_finite_while_the_sum_of_squares_is(signs):
    number = signs[..., 0].size
    x = signs * np.float32(0.999 * np.sqrt(float(np.finfo(np.float32).max) / number))
    check_moments(batch_moments(x, (0, 1, 2))._asdict(), Bounded(np.float64(x)), (0, 1, 2), x.dtype)


@jax.jit
def shares_and_gradient(scale, cotangent):
    shares, pull = jax.vjp(lambda scale: attention_weights(scale, gradient=True), scale)
    return shares, pull(cotangent)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@given(data=st.data(), size=st.sampled_from([1, 2, 7]))
def test_weights_are_shares_with_the_gradient_of_shares(dtype, data, size):
    scale = data.draw(hard_arrays((size,), dtype, SCALES))
    cotangent = data.draw(hard_arrays((size,), "float32", ["normal"]))
    actual, gradient = shares_and_gradient(scale, cotangent)

    # Two divisions and a sum; in the gradient once more, and the mean that it takes away.
    error, exact = bounded.growth(2 * size + 8, unit("float32")), np.float64(scale)
    expected, total = bounded.weights(exact), np.abs(exact).sum()
    assert Bounded(expected, error * expected).contains(actual)
    slope = np.sign(exact) / total if total else 0 * exact
    mean, mean_size = (expected * cotangent).sum(), (expected * np.abs(cotangent)).sum()
    of_each = Bounded(
        slope * (cotangent - mean), error * np.abs(slope) * (np.abs(cotangent) + mean_size)
    )
    assert bounded.rounded(of_each, unit(dtype)).contains(gradient)


@given(scale=hard_arrays((5,), "float32", ["subnormal"]))
def test_weights_of_subnormal_scales_are_shares_or_zero(scale):
    # The processor may take subnormal values for 0.
    shares, gradient = shares_and_gradient(scale, np.zeros(5, np.float32))
    assert np.isfinite(gradient).all()
    assert np.abs(np.sum(shares) - 1) < 5 * unit("float32") or not shares.any()
