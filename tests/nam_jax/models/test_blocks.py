"""The ReLU at the end of a block."""

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
