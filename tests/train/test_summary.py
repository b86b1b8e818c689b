"""The size of a network: parameters and multiply-adds."""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import models
from train import summary


@functools.cache
def resnet50(attention, stem):
    size, num_classes = (32, 100) if stem == "cifar" else (224, 1000)
    model = models.create("resnet50", num_classes=num_classes, attention=attention, stem=stem)
    return summary.multiply_adds(model, (size, size, 3))


@pytest.mark.parametrize(("stem", "expected"), [("cifar", "1.298"), ("imagenet", "4.089")])
@pytest.mark.parametrize("attention", ["none", "nam_channel"])
def test_multiply_adds_are_those_of_the_reference(attention, stem, expected):
    assert f"{resnet50(attention, stem) / 1e9:.3f}" == expected
    assert resnet50(attention, stem) == resnet50("none", stem)


class Layers(nn.Module):
    """Every kind of layer that counts, and some that do not."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.Conv(6, (3, 5), feature_group_count=3, padding="VALID")(x))
        return nn.Dense(7)(x.reshape(len(x), -1))


def test_multiply_adds_count_strides_groups_and_borders():
    # The image is 12 × 16; a border counts as if it were there.
    strided = 6 * 8 * 6 * (3 * 3 * 4)
    grouped = 4 * 4 * 6 * (3 * 5 * 2)
    linear = 4 * 4 * 6 * 7
    assert summary.multiply_adds(Layers(), (12, 16, 4)) == strided + grouped + linear


class Wrapped(nn.Module):
    """A layer inside a compiled and a rematerialised function."""

    @nn.compact
    def __call__(self, x, train):
        return nn.remat(nn.jit(nn.Dense))(7)(x)


def test_multiply_adds_count_what_is_inside_other_functions():
    assert summary.multiply_adds(Wrapped(), (2, 3, 4)) == 2 * 3 * 4 * 7


def test_parameters_are_counted_over_the_whole_tree():
    params = {"a": {"kernel": np.zeros((3, 4)), "bias": jnp.zeros(4)}, "b": np.zeros(())}
    assert summary.parameters(params) == 12 + 4 + 1
    assert summary.parameters({}) == 0
