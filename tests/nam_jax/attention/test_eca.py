"""ECA's kernel: how long it is, and what lies beyond the first and the last channel."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import ECA
from nam_jax.attention.eca import adaptive_kernel_size
from tests.helpers.networks import image


@pytest.mark.parametrize("channels", [*range(1, 70), 128, 255, 256, 1023, 1024, 2048, 2**20])
def test_kernel_size_is_the_nearest_odd_number(channels):
    wanted = (math.log2(channels) + 1) / 2
    size = adaptive_kernel_size(channels)
    assert size % 2 == 1
    # Half-way between two, as for 2048 channels, it is the larger.
    assert size - 1 <= wanted < size + 1


@pytest.mark.parametrize("kernel_size", [0, -1, 1.5])
def test_kernel_size_that_is_none_is_refused(kernel_size):
    with pytest.raises(ValueError, match="kernel_size has to be a whole number of at least 1"):
        ECA(kernel_size=kernel_size).init(jax.random.key(0), jnp.ones((1, 2, 2, 8)))


def test_gates_see_their_neighbours_and_zeros_at_the_ends():
    x = image((2, 3, 5, 4))
    kernel = np.float32([0.3, -0.2, 0.5])
    y = ECA(kernel_size=3).apply({"params": {"conv": {"kernel": kernel[:, None, None]}}}, x)
    mean = np.pad(x.mean((1, 2)), ((0, 0), (1, 1)))
    logits = sum(kernel[tap] * mean[:, tap : tap + 4] for tap in range(3))
    expected = x / (1 + np.exp(-logits))[:, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
