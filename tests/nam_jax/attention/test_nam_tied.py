"""The parameter-free form: ChannelNAM with the scale of the BatchNorm that it gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import nam_jax
from nam_jax import ChannelNAM
from tests.helpers.parity import assert_close, random_variables, train_step

each_norm = pytest.mark.parametrize("norm", [nn.BatchNorm, nam_jax.BatchNorm])


def image(seed=0):
    return 0.5 + 2 * np.random.default_rng(seed).standard_normal((4, 3, 5, 6))


class Tied(nn.Module):
    """A BatchNorm and the parameter-free attention over its output."""

    norm: type[nn.Module]
    weight_gradient: bool = False

    @nn.compact
    def __call__(self, x, use_running_average):
        bn = self.norm(use_running_average=use_running_average, name="nam_bn")
        y = bn(x)
        attention = ChannelNAM(weight_gradient=self.weight_gradient, name="attention")
        return attention(y, scale=bn.variables["params"]["scale"])


@each_norm
@pytest.mark.parametrize("weight_gradient", [False, True])
def test_tied_form_is_the_formula(x64, norm, weight_gradient):
    x, cotangent = image(), image(seed=1)
    module = Tied(norm, weight_gradient)
    variables = random_variables(module, x)

    def loss(params, x):
        bn = norm(use_running_average=False)
        y, _ = bn.apply({**variables, "params": params["nam_bn"]}, x, mutable="batch_stats")
        magnitude = jnp.abs(params["nam_bn"]["scale"])
        weights = magnitude / magnitude.sum()
        weights = weights if weight_gradient else jax.lax.stop_gradient(weights)
        gated = y * jax.nn.sigmoid(weights * y)
        return (gated * cotangent).sum(), gated

    grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
    step = train_step(module, variables, x, cotangent)
    assert_close(step.y, y)
    assert_close((step.dparams, step.dx), grads)


@each_norm
def test_tied_form_owns_nothing(norm):
    variables = random_variables(Tied(norm), image(), np.float32)
    assert {name: list(tree) for name, tree in variables.items()} == {
        "params": ["nam_bn"],
        "batch_stats": ["nam_bn"],
    }


@each_norm
def test_tied_form_without_scales_halves(norm):
    x = image().astype(np.float32)
    variables = random_variables(Tied(norm), x, np.float32)
    variables["params"]["nam_bn"]["scale"] *= 0
    expected = variables["params"]["nam_bn"]["bias"] / 2
    step = train_step(Tied(norm), variables, x, np.ones_like(x))
    np.testing.assert_array_equal(step.y, np.broadcast_to(expected, x.shape))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))


def test_tied_form_gates_in_float32():
    x = jnp.asarray(image(), jnp.bfloat16)
    scale = np.random.default_rng(2).standard_normal(6).astype(np.float32)
    exact = ChannelNAM().apply({}, x.astype(jnp.float32), scale=scale)
    rounded = ChannelNAM(dtype=jnp.bfloat16).apply({}, x, scale=scale)
    assert rounded.dtype == jnp.bfloat16
    assert (np.abs(rounded.astype(jnp.float32) - exact) <= 2.0**-8 * np.abs(exact)).all()
