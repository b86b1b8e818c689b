"""Which NAM weights are small, by layer and in all."""

import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import small_weights
from nam_jax.small_weights import SMALL


def module(scale):
    return {"attention": {"nam_bn": {"scale": jnp.asarray(scale, jnp.float32)}}}


def test_threshold_is_a_part_of_the_mean():
    weights = np.array([[0.9 * SMALL, 1.1 * SMALL], [1.0, 3.0 - 2 * SMALL]]) / 4
    assert small_weights.count(weights) == 1
    assert small_weights.count(np.full(10, 0.1)) == 0


def test_all_weights_of_a_dead_layer_are_small():
    assert small_weights.count(np.zeros((2, 3))) == 6


def test_percentage_is_of_all_weights_not_the_mean_of_the_layers():
    params = {
        "a": module([1.0, -1.0]),
        "b": module([[0.0, 1.0, -1.0], [1e-3, 1.0, 2.0]]),
        "bn": {"scale": jnp.zeros(5)},
    }
    assert small_weights.percentage(params) == pytest.approx(100 * 2 / 8)


def test_network_without_nam_has_none():
    assert small_weights.percentage({"bn": {"scale": jnp.zeros(5)}}) is None
