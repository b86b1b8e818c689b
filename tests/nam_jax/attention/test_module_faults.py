"""Every module on hard arrays, and with something in them that is not a number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nam_jax
from tests.helpers.blocks import MODULES
from tests.helpers.bounded import Bounded, growth, rounded, unit
from tests.helpers.hard_arrays import hard_arrays, in_float64
from tests.helpers.parity import assert_close, random_variables

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = (2, 3, 5, 4)
NAMES = ["bn", *MODULES]
each_name = pytest.mark.parametrize("name", NAMES)
# A kernel of 7 would see all of a map.
FIELDS = {
    "bn": {"momentum": 0.9},
    "se": {"reduction": 2},
    "bam": {"reduction": 2, "dilation": 1},
    "cbam": {"reduction": 2, "kernel_size": 3},
    "tam": {"kernel_size": 3},
}


def module(name, **fields):
    kind = nam_jax.BatchNorm if name == "bn" else MODULES[name]
    return kind(**FIELDS.get(name, {}), **fields)


def apply(name, variables, x, train, **fields):
    """The output and the new statistics."""
    if name == "nam_tied":
        return module(name, **fields).apply({}, x, scale=variables["params"]["scale"]), {}
    y, update = module(name, **fields).apply(variables, x, not train, mutable="batch_stats")
    return y, update.get("batch_stats", {})


@functools.cache
def compiled(name):
    """The outputs and statistics, by whether it trains; and the gradients in training."""

    def both(variables, x, cotangent):
        def loss(params, x):
            y, statistics = apply(name, {**variables, "params": params}, x, True)
            return (y * cotangent).sum(), (y, statistics)

        grads, trained = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
        return {True: trained, False: apply(name, variables, x, False)}, grads

    both = jax.jit(both)
    return lambda *args: jax.device_get(both(*args))


@functools.cache
def variables_of(name, shape=SHAPE):
    x = np.zeros(shape, np.float32)
    if name == "nam_tied":
        return {"params": {"scale": np.linspace(-1, 2, shape[-1], dtype=np.float32)}}
    return random_variables(module(name), x, np.float32)


def is_finite(tree):
    return all(np.isfinite(np.float32(leaf)).all() for leaf in jax.tree.leaves(tree))


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def normal(seed):
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


@st.composite
def hard_variables(draw, name, shape):
    """With any scale and shift in every BatchNorm; the kernels, whose sum has to fit, as usual."""

    def redraw(path, leaf):
        is_affine = path[0].key == "params" and path[-1].key in ("scale", "bias")
        return draw(hard_arrays(leaf.shape, leaf.dtype)) if is_affine else leaf

    return jax.tree_util.tree_map_with_path(redraw, variables_of(name, shape))


@each_name
@pytest.mark.parametrize("shape", [SHAPE, pytest.param((1, 1, 1, 1), marks=pytest.mark.long)])
@given(data=st.data())
def test_finite_in_finite_out(name, shape, data):
    variables = data.draw(hard_variables(name, shape))
    x = data.draw(hard_arrays(shape, "float32"))
    cotangent = data.draw(hard_arrays(shape, "float32", ["normal", "zeros"]))
    # The gradient of a variance that is 0 has scale (x / sqrt(ε))³ as a factor, a small part of
    # which remains, and NAM has two in a row.
    gradients_fit = max(np.abs(leaf).max() for leaf in jax.tree.leaves((variables, x))) < 2e3
    outputs, grads = compiled(name)(variables, x, cotangent)
    assert is_finite(outputs)
    assert is_finite(grads) or not gradients_fit
    for array in (outputs[True][0], outputs[False][0], grads[1]):
        assert (array.shape, array.dtype) == (x.shape, x.dtype)
    assert_equal(outputs[False][1], variables.get("batch_stats", {}))


def affected(name, train, place):
    """What may depend on one place of x."""
    distance = [np.abs(axis - at) for axis, at in zip(np.indices(SHAPE), place, strict=True)]
    n, h, w, c = (d == 0 for d in distance)
    near_h, near_w, near_c = (d <= 1 for d in distance[1:])
    if name in ("bam", "cbam", "tam", "nam") and train:
        return np.full(SHAPE, True)
    if name in ("se", "bam", "cbam"):
        return n
    if name == "tam":
        return n & (near_h & near_w | near_h & near_c | near_w & near_c)
    if name in ("bn", "nam_channel") and train:
        return c
    return h & w if name == "nam_spatial" and train else n & h & w & c


@each_name
@given(
    seed=st.integers(0, 999),
    place=st.tuples(*(st.integers(0, size - 1) for size in SHAPE)),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
)
def test_what_is_not_finite_goes_where_it_must_and_nowhere_else(name, seed, place, value):
    x, variables = normal(seed), variables_of(name)
    clean, _ = compiled(name)(variables, x, np.ones_like(x))
    x[place] = value
    outputs, _ = compiled(name)(variables, x, np.ones_like(x))
    for train, (y, statistics) in outputs.items():
        reached = affected(name, train, place)
        assert not np.isfinite(y[place])
        # An infinite value may, elsewhere, saturate a ReLU or a gate.
        if np.isnan(value) or name.startswith(("nam", "bn")):
            assert not np.isfinite(y[reached]).any()
        np.testing.assert_array_equal(y[~reached], clean[train][0][~reached])
        if not train:
            assert_equal(statistics, variables.get("batch_stats", {}))


@functools.cache
def in_two_dtypes(name):
    """The output in float32 and in the dtype of x, for training and evaluation."""

    def outputs(variables, x, train):
        return [apply(name, variables, x, train, dtype=d)[0] for d in (jnp.float32, x.dtype)]

    return jax.jit(lambda *args: [outputs(*args, train) for train in (False, True)])


@pytest.mark.parametrize("name", MODULES)
@given(x=hard_arrays(SHAPE, "float16", ["normal", "zeros", "negative", "huge", "tiny"]))
def test_float16_is_rounded_to_once_and_overflows_where_the_output_does(name, x):
    # The two are compiled one by one, and rounded differently in float32: in the gate, 100 times.
    for exact, actual in in_two_dtypes(name)(variables_of(name), x):
        assert (actual.shape, actual.dtype) == (x.shape, x.dtype)
        in_float32 = Bounded(
            np.float64(exact), growth(100, unit("float32")) * np.abs(np.float64(x))
        )
        assert rounded(in_float32, unit("float16")).contains(actual)
        # BAM's gate goes up to 2; those of the others, up to 1, make nothing larger.
        assert name == "bam" or np.isfinite(actual).all()


@functools.cache
def float16_gradient(name):
    """The gradient of x, and in float32 the parts of it that do and do not pass the statistics."""

    def gradient(variables, x, cotangent, train):
        def loss(x):
            y, statistics = apply(name, variables, x, train, momentum=0.0, dtype=x.dtype)
            return (y * cotangent).sum(dtype=jnp.float32), statistics

        return jax.grad(loss, has_aux=True)(x)

    def parts(variables, x, cotangent):
        actual, _ = gradient(variables, x, cotangent, True)
        wide = x.astype(jnp.float32)
        whole, statistics = gradient(variables, wide, cotangent, True)
        direct, _ = gradient({**variables, "batch_stats": statistics}, wide, cotangent, False)
        return actual, direct, whole - direct

    return jax.jit(parts)


@pytest.mark.parametrize("name", ["nam_channel", "nam_spatial"])
@given(
    x=hard_arrays(SHAPE, "float16"),
    cotangent=hard_arrays(SHAPE, "float16", ["normal", "one spike"]),
)
def test_float16_gradient_overflows_where_a_part_of_it_does(name, x, cotangent):
    gradient = float16_gradient(name)
    actual, *parts = jax.device_get(gradient(variables_of(name), x, cotangent))
    assert actual.dtype == x.dtype
    largest = float(np.finfo(np.float16).max)
    fits = np.maximum(*np.abs(parts)) < largest / 2  # and so does their sum
    assert np.isfinite(actual[fits]).all()


@functools.cache
def of_batches(name):
    return jax.jit(jax.vmap(functools.partial(apply, name, train=True), (None, 0)))


@pytest.mark.parametrize("name", ["bn", "nam", "se", "bam", "cbam", "tam"])
@in_float64
@given(seed=st.integers(0, 999))
def test_batches_of_a_batch_are_independent(x64, name, seed):
    batches = np.float64([normal(seed), 3 + normal(seed + 1), 2 * normal(seed + 2)])
    actual = of_batches(name)(variables_of(name), batches)
    # As it is among others, every batch is among copies of itself.
    alone = [of_batches(name)(variables_of(name), np.stack([batch] * 3)) for batch in batches]
    expected = jax.tree.map(lambda *leaves: np.stack([leaf[0] for leaf in leaves]), *alone)
    assert_close(actual, expected)
