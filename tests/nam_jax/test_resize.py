"""Spatial NAM at another resolution than it was trained at."""

import jax
import numpy as np
import pytest

from nam_jax import NAM, ChannelNAM, SpatialNAM, models, resize_spatial
from tests.helpers.networks import random_variables

MODULES = [NAM(use_running_average=True), SpatialNAM(use_running_average=True)]
each_module = pytest.mark.parametrize("module", MODULES, ids=["NAM", "SpatialNAM"])


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
@pytest.mark.parametrize("factor", [2, 3])
def test_an_enlarged_input_gets_the_enlarged_gate(x64, module, factor):
    x = image(7, 5)
    variables = variables_of(module, x)
    expected = enlarged(np.asarray(module.apply(variables, x)), factor)
    large = enlarged(x, factor)
    resized = resize_spatial(variables, module, large.shape)
    np.testing.assert_allclose(module.apply(resized, large), expected, rtol=1e-12)


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
    with pytest.raises(ValueError, match="not of this module; these differ: batch_stats/nam_bn"):
        resize_spatial(variables, ChannelNAM(), x.shape)
