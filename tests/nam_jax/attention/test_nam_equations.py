"""NAM on hard arrays: the paper's equations, as far as each dtype is exact."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nam_jax
from nam_jax import NAM, ChannelNAM, SpatialNAM
from nam_jax.attention import TiedNAM
from nam_jax.layers.equations import attention_weights
from tests.helpers import arrays
from tests.helpers.arrays import (
    DTYPES,
    SHAPES,
    Bounded,
    assert_moments,
    hard_arrays,
    in_float64,
    unit,
    wide,
)
from tests.helpers.values import with_slow

pytestmark = pytest.mark.faults

# All of them subnormal, scales are 0 where the processor takes such values for it.
SCALES = ["normal", "zeros", "negative", "some zeros", "one spike", "huge", "tiny", "all sizes"]


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
    outputs = {}
    for name, module, own in (
        ("channel", ChannelNAM, part(variables, "channel")),
        ("spatial", SpatialNAM, part(variables, "spatial")),
        ("both", NAM, variables),
    ):
        nam = module(dtype=x.dtype, momentum=0.0)
        outputs[name, "batch"], update = nam.apply(own, x, False, mutable="batch_stats")
        outputs[name, "moments"] = update["batch_stats"]
        outputs[name, "running"] = nam.apply(own, x, True)
        outputs[name, "given"], _ = nam.apply(own, x, False, moments, mutable="batch_stats")
    tied = TiedNAM(dtype=x.dtype)
    scale = variables["params"]["channel"]["nam_bn"]["scale"]
    outputs["tied", "running"] = tied.apply({}, x, scale=scale)
    return outputs, nam_jax.gates(NAM(), variables, x, use_running_average=True)


def running(variables, name):
    statistics = variables["batch_stats"][name]["nam_bn"]
    return exact_moments(statistics["mean"], statistics["var"])


def exact_moments(*moments):
    kept = (np.float64(value)[..., None] if value.ndim == 2 else value for value in moments)
    return arrays.BoundedMoments(*(Bounded(np.float64(value)) for value in kept))


def expected(variables, x, moments):
    """The same by the paper, each with its bound."""
    params, exact, roundoff = variables["params"], Bounded(np.float64(x)), unit(wide(x.dtype))
    given = exact_moments(moments.mean, moments.var)
    outputs = {}
    for path, channel, spatial in (
        ("batch", None, None),
        ("running", running(variables, "channel"), running(variables, "spatial")),
        ("given", given, None),
    ):
        gated = arrays.attention(exact, params["channel"], roundoff, channel)
        outputs["channel", path] = gated
        outputs["spatial", path] = arrays.attention(exact, params["spatial"], roundoff, spatial)
        outputs["both", path] = arrays.attention(gated, params["spatial"], roundoff, spatial)
    scale = params["channel"]["nam_bn"]["scale"]
    outputs["tied", "running"] = arrays.tied_attention(exact, scale, roundoff)
    return {key: arrays.rounded(y, unit(x.dtype)) for key, y in outputs.items()}


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
        assert_moments(actual[name, "moments"]["nam_bn"], Bounded(np.float64(x)), axes, x.dtype)
    assert all(np.isfinite(np.float64(leaf)).all() for leaf in jax.tree.leaves(actual))


@with_slow("dtypes", DTYPES, {("float16", "float16"), ("float32", "float32")}, ids="-".join)
@given(data=st.data())
def test_nam_is_the_papers(dtypes, data):
    check_equations(data.draw(cases(dtypes)))


@pytest.mark.slow
@given(case=cases(("float32", "float32"), SHAPES[1:2]))
def test_nam_is_the_papers_without_compilation(case):
    check_equations(case, results.__wrapped__)


@in_float64
@given(case=cases(("float64", "float64")))
def test_nam_is_the_papers_in_float64(x64, case):
    check_equations(case)


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
    error, exact = arrays.growth(2 * size + 8, unit("float32")), np.float64(scale)
    expected, total = arrays.weights(exact), np.abs(exact).sum()
    assert Bounded(expected, error * expected).contains(actual)
    slope = np.sign(exact) / total if total else 0 * exact
    mean, mean_size = (expected * cotangent).sum(), (expected * np.abs(cotangent)).sum()
    of_each = Bounded(
        slope * (cotangent - mean), error * np.abs(slope) * (np.abs(cotangent) + mean_size)
    )
    assert arrays.rounded(of_each, unit(dtype)).contains(gradient)


@given(scale=hard_arrays((5,), "float32", ["subnormal"]))
def test_weights_of_subnormal_scales_are_shares_or_zero(scale):
    # The processor may take subnormal values for 0.
    shares, gradient = shares_and_gradient(scale, np.zeros(5, np.float32))
    assert np.isfinite(gradient).all()
    assert np.abs(np.sum(shares) - 1) < 5 * unit("float32") or not shares.any()
