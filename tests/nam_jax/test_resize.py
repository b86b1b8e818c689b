"""Spatial NAM at another resolution than it was trained at."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.core import freeze
from hypothesis import given
from hypothesis import strategies as st

from nam_jax import NAM, ChannelNAM, SpatialNAM, attach, models, resize_spatial
from nam_jax.variables import abstract_variables
from tests.helpers.arrays import KINDS, hard_arrays, unit
from tests.helpers.networks import random_variables

MODULES = {
    f"{module.__name__}-{normalization}": module(
        use_running_average=True, normalization=normalization
    )
    for module in (NAM, SpatialNAM)
    for normalization in ("share", "mean")
}
each_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)


def image(height, width):
    return np.random.default_rng(0).standard_normal((2, height, width, 5))


def variables_of(module, x):
    return random_variables(module.clone(use_running_average=None), x)


def enlarged(x, factor):
    return x.repeat(factor, axis=1).repeat(factor, axis=2)


@each_module
def test_the_same_size_is_the_identity(x64, module):
    x = image(7, 5)
    variables = variables_of(module, x)
    actual = resize_spatial(variables, module, x.shape)
    jax.tree.map(np.testing.assert_array_equal, actual, variables)


@each_module
@pytest.mark.parametrize("factor", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_enlarged_input_gets_the_enlarged_gate(x64, module, factor):
    x = image(7, 5)
    variables = variables_of(module, x)
    apply = jax.jit(module.apply)
    expected = enlarged(np.asarray(apply(variables, x)), factor)
    large = enlarged(x, factor)
    resized = resize_spatial(variables, module, large.shape)
    # Some gates are near 0 there, and exact to a rounding of 1.
    atol = 1e-15 if module.normalization == "mean" else 0
    np.testing.assert_allclose(apply(resized, large), expected, rtol=1e-12, atol=atol)


@each_module
def test_there_and_back_by_a_whole_factor(x64, module):
    x = image(4, 6)
    variables = variables_of(module, x)
    there = resize_spatial(variables, module, (1, 8, 12, 5))
    back = resize_spatial(there, module, (1, 4, 6, 5))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-12), back, variables)


def test_new_pixels_are_means_of_what_they_cover(x64):
    module = SpatialNAM(use_running_average=True)
    variables = variables_of(module, image(1, 2))
    old = variables["batch_stats"]["nam_bn"]["mean"][0]
    resized = resize_spatial(variables, module, (1, 1, 3, 5))
    expected = [old[0], (old[0] + old[1]) / 2, old[1]]
    np.testing.assert_allclose(resized["batch_stats"]["nam_bn"]["mean"][0], expected)
    # λ and shift grow with the number of pixels.
    old = variables["params"]["nam_bn"]["scale"][0]
    expected = np.array([old[0], (old[0] + old[1]) / 2, old[1]]) * 3 / 2
    np.testing.assert_allclose(resized["params"]["nam_bn"]["scale"][0], expected)


def test_a_network_takes_the_new_size_and_keeps_all_else():
    model = models.create("resnet20", num_classes=3, attention="nam", stem="cifar", width=4)
    small, large = (np.zeros((1, size, size, 3), np.float32) for size in (16, 20))
    variables = random_variables(model, small, np.float32)
    resized = resize_spatial(variables, model, large.shape)
    logits = jax.eval_shape(lambda v: model.apply(v, large, train=False), resized)
    assert logits.shape == (1, 3)
    assert resized["params"]["layer3_2"]["attention"]["spatial"]["nam_bn"]["scale"].shape == (5, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(resized)} == {np.dtype(np.float32)}
    kernel, same = (tree["params"]["layer3_2"]["conv2"]["kernel"] for tree in (variables, resized))
    np.testing.assert_array_equal(kernel, same)


def test_variables_of_another_module_are_refused():
    x = image(4, 4)
    variables = variables_of(SpatialNAM(), x)
    with pytest.raises(ValueError, match="not of this module: batch_stats/nam_bn"):
        resize_spatial(variables, ChannelNAM(), x.shape)


class Jitted(nn.Module):
    """Two equal blocks, which nn.jit traces once."""

    @nn.compact
    def __call__(self, x, train):
        block = nn.jit(SpatialNAM)
        for _ in range(2):
            x = block(normalization="mean", use_running_average=not train)(x)
        return x


def test_weights_relative_to_the_mean_are_known_inside_of_jit():
    x = image(4, 4)
    variables = Jitted().init(jax.random.key(0), x, train=False)
    for _ in range(2):
        resized = resize_spatial(variables, Jitted(), (2, 8, 8, 5))
        scales = [leaf for leaf in jax.tree.leaves(resized["params"]) if leaf.max() > 0]
        assert len(scales) == 2
        for scale in scales:
            np.testing.assert_array_equal(scale, np.ones((8, 8)))


def test_sizes_may_be_those_of_numpy():
    x = image(4, 4)
    variables = variables_of(SpatialNAM(), x)
    resized = resize_spatial(variables, SpatialNAM(), tuple(np.array([1, 8, 8, 5])))
    assert resized["params"]["nam_bn"]["scale"].shape == (8, 8)


@pytest.mark.parametrize("shape", [(4, 4, 5), (1, 4, 0, 5)])
def test_a_shape_of_no_images_is_refused(shape):
    variables = variables_of(SpatialNAM(), image(4, 4))
    with pytest.raises(
        ValueError, match=r"^input_shape has to be \(N, H, W, C\), each at least 1;"
    ):
        resize_spatial(variables, SpatialNAM(), shape)


class Handing(nn.Module):
    """A network that hands its arguments on."""

    @nn.compact
    def __call__(self, x, **kwargs):
        return models.create("resnet20", num_classes=3, attention="nam")(x, **kwargs)


def test_a_network_that_hands_its_arguments_on():
    x = np.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: Handing().init(jax.random.key(0), x, train=False))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    resized = resize_spatial(zeros, Handing(), (1, 96, 96, 3))
    (network,) = resized["params"].values()
    assert network["layer1_0"]["attention"]["spatial"]["nam_bn"]["scale"].shape == (24, 24)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return NAM(use_running_average=True)(x), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        axes = {"params": 0, "batch_stats": 0}
        layers = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)
        return layers(name="layers")(x, None)[0]


def test_layers_that_are_scanned():
    variables = random_variables(Scanned(), image(4, 6))
    resized = resize_spatial(variables, Scanned(), (1, 8, 3, 5))

    def layer(tree, number):
        own = {name: value["layers"]["NAM_0"] for name, value in tree.items()}
        return jax.tree.map(lambda leaf: leaf[number], own)

    for number in range(3):
        expected = resize_spatial(layer(variables, number), NAM(), (1, 8, 3, 5))
        jax.tree.map(np.testing.assert_array_equal, layer(resized, number), expected)


def test_frozen_variables_of_a_module_that_takes_no_mode():
    model = attach(nn.Sequential([nn.Conv(5, (3, 3))]), "nam", after="layers_0")
    variables = model.init(jax.random.key(0), image(4, 4))
    resized = resize_spatial(freeze(variables), model, (1, 6, 6, 5))
    assert model.apply(resized, image(6, 6)).shape == (2, 6, 6, 5)


# At any other resolution: the area that every old pixel has in a new one.

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


@pytest.mark.faults
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


@pytest.mark.faults
@given(data=st.data(), size=sizes)
def test_the_same_size_changes_not_a_bit(data, size):
    variables = hard_variables(data.draw, NAM(), size)
    for leaf in jax.tree.leaves(variables):
        leaf.flat[0] = data.draw(st.sampled_from([np.nan, np.inf, -0.0, 1.0]))
    resized = resize_spatial(variables, NAM(), (1, *size, 3))
    for actual, expected in zip(*map(jax.tree.leaves, (resized, variables)), strict=True):
        assert actual.tobytes() == expected.tobytes()


@pytest.mark.faults
@given(data=st.data(), old=sizes, new=sizes, value=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_stays_where_it_is(data, old, new, value):
    variables = hard_variables(data.draw, SpatialNAM(), old)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in old)
    variables["batch_stats"]["nam_bn"]["mean"][place] = value
    resized = resize_spatial(variables, SpatialNAM(), (1, *new, 3))
    row, column = (shares(o, n)[:, at] > 1e-9 for o, n, at in zip(old, new, place, strict=True))
    reached = ~np.isfinite(resized["batch_stats"]["nam_bn"]["mean"])
    np.testing.assert_array_equal(reached, np.outer(row, column))
