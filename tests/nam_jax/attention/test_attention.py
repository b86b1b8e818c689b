"""What every attention module has to compute, by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

from tests.helpers.blocks import MODULES, SHAPE, Block, each_mode, each_name, image
from tests.helpers.parity import assert_close, random_variables, sharded_train_step, train_step

# bfloat16 has eight significant bits: rounding to it moves a value by at most 2⁻⁸ of it. The
# gates are float32 whatever the dtype, so that a result is rounded once; NAM's twice, between
# its two parts and at its end.
BFLOAT16 = dict.fromkeys(MODULES, 2.0 ** (-8)) | {"nam": 2 * 2.0**-8}


@functools.cache
def compiled(name, train, dtype=None):
    """Variables and x to y and the new statistics."""
    block = Block(name, dtype)
    return jax.jit(lambda v, x: block.apply(v, x, not train, mutable="batch_stats"))


@functools.cache
def variables_of(name, shape=SHAPE, dtype=np.float32):
    return random_variables(Block(name), image(shape), dtype)


def close_elementwise(actual, expected, tolerance):
    actual, expected = (np.asarray(a, np.float32) for a in (actual, expected))
    return (np.abs(actual - expected) <= tolerance * np.abs(expected)).all()


@each_name
@each_mode
def test_shape_and_dtype_are_kept(name, train):
    y, update = compiled(name, train)(variables_of(name), image())
    assert y.shape == SHAPE
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    assert np.abs(y - image()).max() > 0.1  # it does something
    before = variables_of(name).get("batch_stats", {})
    same = jax.tree.map(np.array_equal, update.get("batch_stats", {}), before)
    assert all(leaf == (not train) for leaf in jax.tree.leaves(same))


@each_name
def test_jit_changes_nothing(name):
    block = Block(name)
    actual = block.apply(variables_of(name), image(), False, mutable="batch_stats")
    assert_close(actual, compiled(name, True)(variables_of(name), image()), 1e-5)


@each_name
def test_vmap_over_parameters_is_a_loop(name):
    leaves, structure = jax.tree.flatten(variables_of(name))
    # Other values in other places: nam_tied knows only shares of its scale.
    several = [
        structure.unflatten([np.roll(leaf, n) * np.float32(1 + n) for leaf in leaves])
        for n in range(3)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    block = Block(name)
    mapped = jax.jit(
        jax.vmap(lambda v, x: block.apply(v, x, False, mutable="batch_stats"), (0, None))
    )
    loop = [compiled(name, True)(variables, image()) for variables in several]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
    assert np.abs(expected[0][0] - expected[0][1]).max() > 1e-3
    assert_close(mapped(stacked, image()), expected, 1e-5)


@each_name
def test_gradients_are_finite_and_reach_everything(name):
    step = train_step(Block(name), variables_of(name), image(), image(seed=1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert np.abs(step.dx).max() > 1e-3
    for path, leaf in traverse_util.flatten_dict(step.dparams).items():
        # A BatchNorm takes the mean away: what is added before it changes nothing. And the
        # scale of nam_tied, read without a gradient, is a parameter of the BatchNorm.
        before_norm = name == "bam" and path[-1] == "bias" and path[-2] in BEFORE_NORM
        assert (np.abs(leaf).max() > 1e-5) != (before_norm or name == "nam_tied"), path


BEFORE_NORM = ("fc1", "spatial_reduce", "spatial_dilated0", "spatial_dilated1")


@each_name
@each_mode
def test_bfloat16_is_near_float32(name, train):
    x = jnp.asarray(image(), jnp.bfloat16)
    rounded, update = compiled(name, train, jnp.bfloat16)(variables_of(name), x)
    exact, exact_update = compiled(name, train)(variables_of(name), x.astype(jnp.float32))
    assert rounded.dtype == jnp.bfloat16
    assert close_elementwise(rounded, exact, BFLOAT16[name])
    assert not np.array_equal(np.float32(rounded), exact)
    # NAM's second part sees the rounded output of the first.
    if update:
        assert_close(update, exact_update, BFLOAT16[name] if name == "nam" else 1e-6)


@each_name
def test_serialisation_brings_everything_back(name):
    _, update = compiled(name, True)(variables_of(name), image())
    trained = {**variables_of(name), **update}
    blank = jax.tree.map(np.zeros_like, trained)
    restored = serialization.from_bytes(blank, serialization.to_bytes(trained))
    assert jax.tree.structure(restored) == jax.tree.structure(trained)
    jax.tree.map(np.testing.assert_array_equal, restored, trained)


@each_name
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (3, 1, 1, 32), (1, 4, 2, 32)])
def test_one_pixel_and_one_image(name, shape):
    variables = variables_of(name, shape)
    step = train_step(Block(name), variables, image(shape), image(shape, seed=1))
    y, _ = compiled(name, False)(variables, image(shape))
    assert step.y.shape == y.shape == shape
    assert all(np.isfinite(leaf).all() for leaf in (y, *jax.tree.leaves(step)))
    assert np.abs(step.dx).max() > 0


def transposed(name, variables):
    """The variables for maps with height and width exchanged."""

    def turn(path, leaf):
        if path[-1] == "kernel" and leaf.ndim == 4 and not {"gate_h", "gate_w"} & set(path):
            return leaf.swapaxes(0, 1)
        return leaf.T if "nam_bn" in path and leaf.ndim == 2 else leaf

    other = {"gate_h": "gate_w", "gate_w": "gate_h"}
    return traverse_util.unflatten_dict(
        {
            tuple(other.get(key, key) for key in path): turn(path, leaf)
            for path, leaf in traverse_util.flatten_dict(variables).items()
        }
    )


@each_name
@each_mode
def test_height_and_width_are_alike(name, train):
    variables, x = variables_of(name), image()
    y, update = compiled(name, train)(variables, x)
    turned = compiled(name, train)(transposed(name, variables), x.swapaxes(1, 2))
    assert_close(turned[0], y.swapaxes(1, 2), 1e-5)
    if update:
        assert_close(turned[1], transposed(name, update), 1e-5)


@each_name
def test_float64_stays_float64(x64, name):
    x = image(dtype=np.float64)
    y, _ = jax.eval_shape(compiled(name, True), variables_of(name), x)
    assert y.dtype == np.float64


@each_name
def test_four_devices_are_one_batch(x64, name):
    x, cotangent = (image((8, 5, 3, 32), seed, np.float64) for seed in (0, 1))
    variables = random_variables(Block(name), x)
    expected = train_step(Block(name), variables, x, cotangent)
    # Initialisation knows of no axis; nothing else than the name has to change.
    sharded = Block(name, axis_name="data")
    jax.tree.map(np.testing.assert_array_equal, random_variables(sharded, x), variables)
    actual = sharded_train_step(sharded, variables, x, cotangent)
    on_all = jax.tree.map(lambda value: np.stack([value] * 4), expected.statistics)
    assert_close(actual, expected._replace(statistics=on_all))
