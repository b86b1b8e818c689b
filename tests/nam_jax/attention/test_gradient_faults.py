"""Gradients on random arrays: those of finite differences, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import nam_jax
from tests.helpers.blocks import MODULES
from tests.helpers.hard_arrays import in_float64
from tests.helpers.parity import formula, random_variables

pytestmark = pytest.mark.usefixtures("quick_compilation", "x64")

SHAPE = (2, 3, 2, 4)
NAM = ["nam_channel", "nam_spatial", "nam"]
STEP = 1e-6
# What a function's value may be off by, relative to the sum of its terms.
ROUNDING = 1e3 * np.finfo(np.float64).eps


def norm_and(name, variables, x):
    """The end of a network's block, where a BatchNorm hands on its moments."""
    norm = nam_jax.BatchNorm(use_running_average=False)
    own = {"params": variables["params"]["norm"]}
    (x, moments), _ = norm.apply(own, x, return_moments=True, mutable="batch_stats")
    if name == "norm":
        return x, moments
    own = {"params": variables["params"]["attention"]}
    attention = MODULES[name](**fields(name))
    return attention.apply(own, x, False, moments, mutable="batch_stats")[0]


def alone(name, variables, x, train):
    module = MODULES[name](**fields(name))
    if name == "nam_tied":
        return module.apply({}, x, scale=variables["params"]["scale"])
    return module.apply(variables, x, not train, mutable="batch_stats")[0]


def fields(name):
    # Detached weights are no constants, for finite differences.
    return {"weight_gradient": True} if name.startswith("nam") else {}


CASES = {
    "norm": functools.partial(norm_and, "norm"),
    **{name: functools.partial(alone, name, train=True) for name in MODULES},
    "nam in evaluation": functools.partial(alone, "nam", train=False),
    "nam after norm": functools.partial(norm_and, "nam"),
}


@functools.cache
def shapes_of(case):
    """Variables of the shapes that a case has."""
    name, *where = case.split()
    norm = {"scale": np.zeros(SHAPE[3]), "bias": np.zeros(SHAPE[3])}
    if case == "norm":
        return {"params": {"norm": norm}}
    if name == "nam_tied":
        return {"params": {"scale": norm["scale"]}}
    variables = random_variables(MODULES[name](), np.zeros(SHAPE))
    if where == ["after", "norm"]:
        return {"params": {"norm": norm, "attention": variables["params"]}}
    return variables


def drawn(case, seed, far=0.0):
    """Parameters and an input, a direction in which to move them, and the statistics."""
    normal = np.random.default_rng(seed).standard_normal
    params, statistics = (shapes_of(case).get(name, {}) for name in ("params", "batch_stats"))
    point, direction = (
        jax.tree.map(lambda leaf: normal(leaf.shape), (params, np.zeros(SHAPE))) for _ in range(2)
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
        y, _ = ravel_pytree(CASES[case]({**statistics, "params": params}, x))
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


@pytest.mark.parametrize("case", CASES)
@in_float64
@given(seed=st.integers(0, 999), far=st.sampled_from([0.0, 10.0]))
def test_gradient_is_that_of_finite_differences(case, seed, far):
    point, direction, statistics = drawn(case, seed, far)
    run = value_and_gradient(case)
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


@pytest.mark.parametrize("name", NAM)
@in_float64
@given(seed=st.integers(0, 999))
def test_detached_weights_are_constants_of_the_papers_formula(name, seed):
    point, direction, _ = drawn(name, seed)
    cotangent = np.random.default_rng(seed + 1).standard_normal(SHAPE)

    def terms(steps):
        params, x = moved(point, direction, steps)
        return formula(params, x, weights_of=point[0]) * cotangent

    before, at, after = (terms(steps) for steps in (-1, 0, 1))
    slope = product(detached_gradient(name)(point, cotangent), direction)
    check_slope(before.sum(), at.sum(), after.sum(), slope, np.abs(at).sum())
