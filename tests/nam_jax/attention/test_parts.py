"""What the attention modules are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from nam_jax.attention.parts import mean_and_maximum
from tests.helpers.arrays import assert_close


@pytest.mark.parametrize(
    "axes",
    [
        (3,),
        (1, 2),
        (3, 1),
        pytest.param((1,), marks=pytest.mark.slow),
        pytest.param((2,), marks=pytest.mark.slow),
    ],
)
def test_mean_and_maximum_and_their_gradients(x64, axes):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    expected = x.mean(axes), x.max(axes)
    assert_close(mean_and_maximum(x, axes), expected)
    # What the derivative's rule computes beside it.
    assert_close(jax.vjp(lambda x: mean_and_maximum(x, axes), x)[0], expected)
    check_grads(lambda x: mean_and_maximum(x, axes), (x,), order=2, modes=("fwd", "rev"))


def maximum(x, axes):
    return mean_and_maximum(x, axes)[1]


def test_gradient_of_maximum_goes_to_the_first_of_equals():
    x = jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    grad = jax.grad(lambda x: maximum(x, (1,)).sum())(x)
    np.testing.assert_array_equal(grad, [[0, 1, 0], [1, 0, 0]])
    grad = jax.grad(lambda x: maximum(x, (0, 1)).sum())(x)
    np.testing.assert_array_equal(grad, [[0, 1, 0], [0, 0, 0]])


def test_maximum_of_nan_is_nan_where_it_is_differentiated():
    x = jnp.array([[1.0, jnp.nan, 3.0]])
    assert np.isnan(jax.vjp(lambda x: maximum(x, (1,)), x)[0]).all()


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_gradient_of_maximum_is_finite_where_its_input_is_computed_anew():
    def loss(x, scale):
        return jnp.square(maximum((x - x.mean()) * scale + 1.3, (3,))).sum()

    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    # Without optimisation the CPU's compiler rounds the input otherwise the second time.
    options = {"xla_backend_optimization_level": 0}
    grad = jax.jit(jax.grad(loss)).lower(x, 0.7).compile(compiler_options=options)(x, 0.7)
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, jax.jit(jax.grad(loss))(x, 0.7), atol=1e-5)
