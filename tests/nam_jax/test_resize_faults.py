"""Spatial NAM at any other resolution: the area that every old pixel has in a new one."""

import functools

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nam_jax import NAM, SpatialNAM, resize_spatial
from nam_jax.variables import abstract_variables
from tests.helpers.arrays import KINDS, hard_arrays, unit

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@functools.cache
def shapes_of(module, size):
    return abstract_variables(module, (1, *size, 3))


def hard_variables(draw, module, size, kinds=tuple(KINDS)):
    return jax.tree.map(
        lambda leaf: draw(hard_arrays(leaf.shape, leaf.dtype, kinds)), shapes_of(module, size)
    )


def shares(old, new):
    """How much of every new pixel, by rows, is of each old one, along one axis."""
    share = np.empty((new, old))
    for i, j in np.ndindex(new, old):
        start, end = max(i / new, j / old), min((i + 1) / new, (j + 1) / old)
        share[i, j] = max(0, end - start) * new
    return share


@given(data=st.data(), old=sizes, new=sizes)
def test_new_pixels_are_means_by_area(data, old, new):
    module = SpatialNAM(param_dtype=data.draw(st.sampled_from(["float32", "bfloat16"])))
    variables = hard_variables(data.draw, module, old)
    resized = resize_spatial(variables, module, (2, *new, 3))
    rows, columns = (shares(*pair) for pair in zip(old, new, strict=True))
    for collection, factor in (("params", np.prod(new) / np.prod(old)), ("batch_stats", 1.0)):
        for name, leaf in variables[collection]["nam_bn"].items():
            actual = resized[collection]["nam_bn"][name]
            assert (actual.shape, actual.dtype) == (new, leaf.dtype)
            expected, most = (
                factor * rows @ a @ columns.T for a in (leaf.astype(float), np.abs(leaf))
            )
            # Rounded to the dtype; and float64's own rounding of a few sums.
            error = unit(leaf.dtype) * np.abs(expected) + 100 * unit("float64") * most
            assert (np.abs(actual.astype(float) - expected) <= error + 1e-37).all()


@given(data=st.data(), size=sizes)
def test_the_same_size_changes_not_a_bit(data, size):
    variables = hard_variables(data.draw, NAM(), size)
    for leaf in jax.tree.leaves(variables):
        leaf.flat[0] = data.draw(st.sampled_from([np.nan, np.inf, -0.0, 1.0]))
    resized = resize_spatial(variables, NAM(), (1, *size, 3))
    for actual, expected in zip(*map(jax.tree.leaves, (resized, variables)), strict=True):
        assert actual.tobytes() == expected.tobytes()


@given(data=st.data(), old=sizes, new=sizes, value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_stays_where_it_is(data, old, new, value):
    variables = hard_variables(data.draw, SpatialNAM(), old)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in old)
    variables["batch_stats"]["nam_bn"]["mean"][place] = value
    resized = resize_spatial(variables, SpatialNAM(), (1, *new, 3))
    row, column = (shares(o, n)[:, at] > 1e-9 for o, n, at in zip(old, new, place, strict=True))
    reached = ~np.isfinite(resized["batch_stats"]["nam_bn"]["mean"])
    np.testing.assert_array_equal(reached, np.outer(row, column))
