"""The ReLU at the end of a block; what is dropped at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nam_jax.models import blocks

X = np.array([-2.0, -0.0, 0.0, 1e-30, 3.0, np.inf, -np.inf], np.float32)


def test_derivative_that_reads_the_result_is_that_of_relu():
    for relu in (blocks.relu, blocks._relu_of_result):
        for derivative in (lambda f: f, lambda f: jax.grad(lambda x: (jnp.cos(x) * f(x)).sum())):
            finite = X[np.isfinite(X)]
            found, expected = (derivative(f)(finite) for f in (relu, nn.relu))
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(relu(X), nn.relu(X))
        np.testing.assert_array_equal(
            jax.grad(lambda x, f=relu: f(x).sum())(X), jax.grad(lambda x: nn.relu(x).sum())(X)
        )


@pytest.mark.parametrize(
    ("platform", "reads_result"), [("cpu", False), ("tpu", False), ("cuda", True)]
)
def test_only_gpus_get_it(platform, reads_result):
    text = jax.jit(jax.grad(lambda x: blocks.relu(x).sum())).trace(X)
    text = text.lower(lowering_platforms=(platform,)).as_text()
    assert ("compare NE" in text) is reads_result


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5)])
def test_drop_is_its_definition(shape, dtype):
    keys = jax.random.split(jax.random.key(0), 40)
    x = jnp.asarray(1 + np.random.default_rng(0).random((40, 3, 2, 5)), dtype)
    found = blocks.drop(x, keys, 0.25, shape)
    assert found.dtype == dtype
    uniform = jax.jit(lambda key: jax.random.uniform(key, shape))
    draws = np.stack([uniform(key) for key in keys])
    expected = np.where(draws < 0.75, np.float64(x) / 0.75, 0)
    np.testing.assert_allclose(np.float64(found), expected, rtol=jnp.finfo(dtype).eps)
    # Of 40 rows or of 1200 values, within four standard deviations.
    assert abs((expected == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / draws.size)


def test_a_row_depends_on_its_own_key_alone():
    keys, x = jax.random.split(jax.random.key(0), 6), jnp.ones((6, 2, 2, 3))
    drop = jax.jit(lambda x, keys: blocks.drop(x, blocks.keys_of(keys, 3), 0.5, (2, 2, 3)))
    whole, rows = drop(x, keys), np.array([5, 2])
    np.testing.assert_array_equal(drop(x[rows], keys[rows]), whole[rows])
    assert len({row.tobytes() for row in np.asarray(whole)}) == 6


def test_places_of_a_network_have_keys_of_their_own():
    keys = jax.random.split(jax.random.key(0), 4)
    found = [jax.random.key_data(blocks.keys_of(keys, place)) for place in range(3)]
    assert len({tuple(key) for key in np.concatenate(found).tolist()}) == 12
    assert blocks.keys_of(None, 1) is None


def test_nothing_is_dropped_without_keys_or_a_rate():
    x = jnp.ones((2, 2, 2, 3))
    assert blocks.drop(x, None, 0.5) is x
    assert blocks.drop(x, jax.random.split(jax.random.key(0), 2), 0.0) is x


def test_rates_grow_linearly():
    np.testing.assert_allclose(blocks.drop_rates(0.3, 4), [0, 0.1, 0.2, 0.3])
    assert blocks.drop_rates(0.3, 1) == [0]
