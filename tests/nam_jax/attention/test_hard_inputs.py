"""Every attention module, and BatchNorm, on hard arrays; and gradients by finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import nam_jax
from nam_jax.attention import has_nam_scales
from tests.helpers.arrays import (
    Bounded,
    assert_close,
    formula,
    growth,
    hard_arrays,
    in_float64,
    rounded,
    unit,
)
from tests.helpers.networks import MODULES, further_arguments, random_variables
from tests.helpers.values import with_slow

pytestmark = pytest.mark.faults

SHAPE = (2, 3, 5, 4)
NAMES = ["bn", *MODULES]
each_name = pytest.mark.parametrize("name", NAMES)
# NAM stands for its parts, CBAM for the others that take long to compile, SE for what is simpler.
LARGEST = ("nam_channel", "nam_spatial", "bam", "tam", "half", "eca", "simam", "coordatt")
# A kernel of 7 would see all of a map.
FIELDS = {
    "bn": {"momentum": 0.9},
    "se": {"reduction": 2},
    "bam": {"reduction": 2, "dilation": 1},
    "cbam": {"reduction": 2, "kernel_size": 3},
    "tam": {"kernel_size": 3},
    "eca": {"kernel_size": 3},
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

        params = variables.get("params", {})
        grads, trained = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        return {True: trained, False: apply(name, variables, x, False)}, grads

    both = jax.jit(both)
    return lambda *args: jax.device_get(both(*args))


@functools.cache
def variables_of(name, shape=SHAPE):
    if name == "nam_tied":
        return {"params": {"scale": np.linspace(-1, 2, shape[-1], dtype=np.float32)}}
    return random_variables(module(name), np.zeros(shape, np.float32), np.float32)


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


@with_slow("name", NAMES, LARGEST)
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
    """What may depend on one place of x, and whether all of it does."""
    distance = [np.abs(axis - at) for axis, at in zip(np.indices(SHAPE), place, strict=True)]
    n, h, w, c = (d == 0 for d in distance)
    near_h, near_w, near_c = (d <= 1 for d in distance[1:])
    if name in ("bam", "cbam", "tam", "nam", "coordatt") and train:
        return np.full(SHAPE, True), True
    if name in ("se", "bam", "cbam"):
        return n, True
    if name == "tam":
        return n & (near_h & near_w | near_h & near_c | near_w & near_c), True
    if name == "eca":
        return n & near_c, True
    if name == "simam":
        return n & c, True
    if name == "coordatt":
        return n & (h | w), True
    if name in ("bn", "nam_channel") and train:
        return c, True
    if name == "nam_spatial" and train:
        return h & w, True
    if name in ("bn", "nam_channel", "nam_spatial", "nam", "nam_tied", "half"):
        return n & h & w & c, True
    # Of any other module it is known that, in evaluation, images do not meet.
    return (np.full(SHAPE, True) if train else n), False


@with_slow("name", NAMES, LARGEST)
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
        reached, is_all = affected(name, train, place)
        assert not np.isfinite(y[place])
        # An infinite value may, elsewhere, saturate a ReLU or a gate.
        if is_all and (np.isnan(value) or name == "bn" or has_nam_scales(name)):
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


@with_slow("name", MODULES, set(LARGEST) - {"bam"})
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


# The parts of NAM are tested as parts of it.
@with_slow("name", [n for n in NAMES if not n.startswith("nam_")], LARGEST)
@in_float64
@given(seed=st.integers(0, 999))
def test_batches_of_a_batch_are_independent(x64, name, seed):
    batches = np.float64([normal(seed), 3 + normal(seed + 1), 2 * normal(seed + 2)])
    actual = of_batches(name)(variables_of(name), batches)
    # As it is among others, every batch is among copies of itself.
    alone = [of_batches(name)(variables_of(name), np.stack([batch] * 3)) for batch in batches]
    expected = jax.tree.map(lambda *leaves: np.stack([leaf[0] for leaf in leaves]), *alone)
    assert_close(actual, expected)


# Gradients in float64.

SMALL = (2, 3, 2, 4)
STEP = 1e-6
# What a function's value may be off by, relative to the sum of its terms.
ROUNDING = 1e3 * np.finfo(np.float64).eps


class Case(nn.Module):
    """One attention as it comes, or after a BatchNorm that hands on its moments; or that alone."""

    name_: str
    after_norm: bool = False
    train: bool = True

    @nn.compact
    def __call__(self, x):
        moments = None
        if self.after_norm:
            norm = nam_jax.BatchNorm(use_running_average=False, name="norm")
            x, moments = norm(x, return_moments=True)
        if self.name_ == "norm":
            return x, moments
        # Detached weights are no constants, for finite differences.
        fields = {"weight_gradient": True} if has_nam_scales(self.name_) else {}
        call = further_arguments(self.name_, SMALL[-1])
        if call:
            call = {"scale": self.param("scale", nn.initializers.ones, SMALL[-1:])}
        attention = MODULES[self.name_](**fields, name="attention")
        return attention(x, not self.train, moments, **call)


CASES = {
    "norm": Case("norm", after_norm=True),
    **{name: Case(name) for name in MODULES},
    "nam in evaluation": Case("nam", train=False),
    "nam after norm": Case("nam", after_norm=True),
}


@functools.cache
def shapes_of(case):
    return jax.eval_shape(lambda: case.init(jax.random.key(0), np.zeros(SMALL)))


def drawn(case, seed, far=0.0):
    """Parameters and an input, a direction in which to move them, and the statistics."""
    normal = np.random.default_rng(seed).standard_normal
    shapes = shapes_of(case)
    point, direction = (
        jax.tree.map(lambda leaf: normal(leaf.shape), (shapes.get("params", {}), np.zeros(SMALL)))
        for _ in range(2)
    )
    positive = np.random.default_rng(seed + 1)
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            0.5 + positive.random(leaf.shape)
            if path[-1].key == "var"
            else positive.standard_normal(leaf.shape)
        ),
        shapes.get("batch_stats", {}),
    )
    return (point[0], far + point[1]), direction, {"batch_stats": statistics}


def moved(point, direction, steps):
    return jax.tree.map(lambda p, d: p + steps * STEP * d, point, direction)


def product(gradient, direction):
    return sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))


@functools.cache
def value_and_gradient(case):
    """Of a sum of all that a case returns, in random weights; and the sum of the terms' sizes."""

    def loss(point, statistics):
        params, x = point
        output, _ = case.apply({**statistics, "params": params}, x, mutable="batch_stats")
        y, _ = ravel_pytree(output)
        terms = y * jnp.cos(jnp.arange(y.size))
        return terms.sum(), jnp.abs(terms).sum()

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def check_slope(before, at, after, slope, size):
    """Whether a slope is that of the values one step before, at and after a point.

    It is between the differences on either side, also where a maximum or a ReLU changes in
    between; they differ by no more than the slope does within a step.
    """
    left, right = (at - before) / STEP, (after - at) / STEP
    assert abs(slope - (left + right) / 2) <= abs(right - left) + 4 * ROUNDING * size / STEP


@with_slow("case", CASES, (*LARGEST, "nam after norm"))
@in_float64
@given(seed=st.integers(0, 999), far=st.sampled_from([0.0, 10.0]))
def test_gradient_is_that_of_finite_differences(x64, case, seed, far):
    point, direction, statistics = drawn(CASES[case], seed, far)
    run = value_and_gradient(CASES[case])
    (before, _), _ = run(moved(point, direction, -1), statistics)
    (at, size), gradient = run(point, statistics)
    (after, _), _ = run(moved(point, direction, 1), statistics)
    check_slope(before, at, after, product(gradient, direction), size)


@functools.cache
def detached_gradient(name):
    def loss(point, cotangent):
        params, x = point
        y, _ = MODULES[name]().apply({"params": params}, x, False, mutable="batch_stats")
        return (y * cotangent).sum()

    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize("name", ["nam_channel", "nam_spatial", "nam"])
@in_float64
@given(seed=st.integers(0, 999))
def test_detached_weights_are_constants_of_the_papers_formula(x64, name, seed):
    ((params, x), (to, dx), _) = drawn(Case(name), seed)
    point, direction = (params["attention"], x), (to["attention"], dx)
    cotangent = np.random.default_rng(seed + 1).standard_normal(SMALL)

    def terms(steps):
        params, x = moved(point, direction, steps)
        return formula(params, x, weights_of=point[0]) * cotangent

    before, at, after = (terms(steps) for steps in (-1, 0, 1))
    slope = product(detached_gradient(name)(point, cotangent), direction)
    check_slope(before.sum(), at.sum(), after.sum(), slope, np.abs(at).sum())
