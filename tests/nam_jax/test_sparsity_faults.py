"""The penalty in random trees of parameters, and both of its transformations by definition."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

import nam_jax
from tests.helpers.arrays import growth, hard_arrays, unit

RATE = 0.1
TRANSFORMATIONS = {
    "add": nam_jax.add_sparsity_penalty,
    "proximal": lambda strength: nam_jax.proximal_sparsity(strength, RATE),
}
each_transformation = pytest.mark.parametrize("transformation", TRANSFORMATIONS)
# Of the updates and of the scales.
each_dtypes = pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
    ],
    ids="-".join,
)
KINDS = ["normal", "zeros", "negative", "some zeros", "one spike", "tiny"]
strengths = st.sampled_from([1e-8, 1e-4, 0.3, 2.0])


class Pair(NamedTuple):
    """A container with names, and no dictionary."""

    nam_bn: Any
    scale: Any


arrays = hard_arrays((3,), "float32", KINDS)
leaves = arrays | arrays.map(lambda array: nn.Partitioned(array, (None,)))
norms = st.fixed_dictionaries({"nam_bn": st.fixed_dictionaries({"scale": leaves, "bias": leaves})})
names = st.sampled_from(["nam_bn", "scale", "bn", "bias", "channel", "own_nam_bn", "value"])
trees = st.recursive(
    leaves | norms,
    lambda inner: (
        st.dictionaries(names, inner, max_size=4)
        | st.dictionaries(names, inner, max_size=4).map(FrozenDict)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=20,
)


def with_paths(tree, path=()):
    """Every array with its path, found without JAX."""
    if isinstance(tree, np.ndarray):
        return {path: tree}
    if isinstance(tree, nn.Partitioned):
        return with_paths(tree.value, path)
    if isinstance(tree, Pair):
        tree = tree._asdict()
    items = tree.items() if hasattr(tree, "items") else enumerate(tree)
    return {
        p: leaf for name, inner in items for p, leaf in with_paths(inner, (*path, name)).items()
    }


def is_scale(path):
    return path[-2:] == ("nam_bn", "scale")


def update(transformation, strength, updates, params):
    tx = TRANSFORMATIONS[transformation](strength)
    updates, params = jax.tree.map(jnp.asarray, (updates, params))
    return jax.device_get(tx.update(updates, tx.init(params), params)[0])


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


@given(tree=trees, strength=strengths)
def test_penalty_is_that_of_the_scales_in_any_tree(tree, strength):
    scales = [leaf for path, leaf in with_paths(tree).items() if is_scale(path)]
    expected = strength * np.abs(np.float64(scales)).sum()
    tolerance = growth(3 * len(scales) + 2, unit("float32")) * expected
    assert abs(nam_jax.sparsity_penalty(tree, strength) - expected) <= tolerance
    gradient = with_paths(jax.device_get(jax.grad(nam_jax.sparsity_penalty)(tree, strength)))
    for path, leaf in with_paths(tree).items():
        expected = np.float32(strength) * np.sign(leaf) if is_scale(path) else np.zeros(3)
        np.testing.assert_array_equal(gradient[path], expected)


@each_transformation
@given(tree=trees, strength=strengths)
def test_transformations_find_the_scales_in_any_tree_and_nothing_else(
    transformation, tree, strength
):
    updates = jax.tree.map(np.cos, tree)
    if not any(map(is_scale, with_paths(tree))):
        with pytest.raises(ValueError, match="no parameter path ends in"):
            update(transformation, strength, updates, tree)
        return
    actual = with_paths(update(transformation, strength, updates, tree))
    for path, before in with_paths(updates).items():
        if is_scale(path):
            scale = with_paths(tree)[path]
            alone = update(
                transformation, strength, *({"nam_bn": {"scale": a}} for a in (before, scale))
            )
            assert_same_bits(actual[path], alone["nam_bn"]["scale"])
        else:
            assert_same_bits(actual[path], before)


@each_transformation
@each_dtypes
@given(data=st.data(), off=st.sampled_from([0.0, lambda _: 0.0, lambda _: jnp.zeros(())]))
def test_no_penalty_changes_not_a_bit(transformation, dtypes, data, off):
    # Of a scale's update only its width may: it is that of the wider of the two.
    u, scale = (data.draw(hard_arrays((5,), dtype)) for dtype in dtypes)
    params, updates = ({"nam_bn": {"scale": leaf}, "kernel": u} for leaf in (scale, u))
    actual = update(transformation, off, updates, params)
    assert_same_bits(actual["nam_bn"]["scale"], u.astype(actual["nam_bn"]["scale"].dtype))
    assert_same_bits(actual["kernel"], u)


def drawn_step(transformation, data, dtypes, strength):
    u, scale = (data.draw(hard_arrays((5,), dtype, KINDS)) for dtype in dtypes)
    after = update(transformation, strength, *({"nam_bn": {"scale": a}} for a in (u, scale)))
    return np.float64(u), np.float64(scale), after["nam_bn"]["scale"]


@each_dtypes
@given(data=st.data(), strength=strengths)
def test_penalty_adds_its_subgradient(dtypes, data, strength):
    u, scale, after = drawn_step("add", data, dtypes, strength)
    assert after.dtype == dtypes[0]
    expected = u + strength * np.sign(scale)
    # Two operations in float32, and a rounding to the dtype of the update.
    error = growth(2, unit("float32")) * (np.abs(u) + strength) + unit(after.dtype) * np.abs(
        expected
    )
    smallest = float(jnp.finfo(after.dtype).tiny)
    assert (np.abs(np.float64(after) - expected) <= error + smallest).all()


@each_dtypes
@given(data=st.data(), strength=strengths)
def test_proximal_step_is_the_minimum(dtypes, data, strength):
    u, scale, after = drawn_step("proximal", data, dtypes, strength)
    # Of ½ (s − v)² + t |s|, where v − s is in t ∂|s|.
    v, s, t = scale + u, scale + np.float64(after), strength * RATE
    sizes = np.abs(scale) + np.abs(u) + t
    # Rounded: v, t twice, their difference and the update.
    error = growth(5, unit(after.dtype)) * sizes + float(jnp.finfo(after.dtype).tiny)
    assert (np.abs(v - s) <= t + error).all()
    moved = np.abs(s) > error
    assert (np.abs(v - s - t * np.sign(s)) <= error)[moved].all()
    # A threshold that is above makes it 0, not something near.
    assert (s == 0)[np.abs(v) < t - error].all()


@each_transformation
@pytest.mark.parametrize("strength", [np.float32(-1), np.int64(-1), np.float16("nan")])
def test_negative_strength_of_numpy_is_refused(transformation, strength):
    with pytest.raises(ValueError, match=f"must be at least 0; got {strength}"):
        TRANSFORMATIONS[transformation](strength)
