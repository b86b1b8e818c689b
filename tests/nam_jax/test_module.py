"""What the attention modules are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nam_jax.module import maximum


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_maximum_and_its_gradient(axis):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    np.testing.assert_array_equal(maximum(x, axis), np.float32(x).max(axis))
    check_grads(
        lambda x: maximum(x, axis), (np.float32(x),), order=1, modes=("fwd", "rev"), rtol=0.01
    )


def test_gradient_of_maximum_goes_to_the_first_of_equals():
    grad = jax.grad(lambda x: maximum(x, 1).sum())(jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
    np.testing.assert_array_equal(grad, [[0, 1, 0], [1, 0, 0]])


def test_gradient_of_maximum_is_finite_where_its_input_is_computed_anew():
    def loss(x, scale):
        return jnp.square(maximum((x - x.mean()) * scale + 1.3, 3)).sum()

    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    # Without optimisation the CPU's compiler rounds the input otherwise the second time.
    options = {"xla_backend_optimization_level": 0}
    grad = jax.jit(jax.grad(loss)).lower(x, 0.7).compile(compiler_options=options)(x, 0.7)
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, jax.grad(loss)(x, 0.7), atol=1e-5)
