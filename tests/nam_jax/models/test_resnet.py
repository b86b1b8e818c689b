"""ResNets from the inside: blocks, head, precision, running statistics and devices."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from nam_jax.attention import NAMES
from nam_jax.models import blocks
from nam_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.helpers.arrays import assert_close
from tests.helpers.networks import random_variables, reductions, sharded_train_step, train_step

# Of JAX's generators the one whose compilation takes the least time.
KEY = jax.random.key(0, impl="rbg")


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Head(nn.Module):
    """The head of a network as a module."""

    @nn.compact
    def __call__(self, x, train):
        return blocks.head(x, 3)


def test_head_pools_in_float32():
    x = jnp.asarray(images(2, 5, 7, 16), jnp.bfloat16)
    variables = random_variables(Head(), x, np.float32)
    expected = Head().apply(variables, x.astype(jnp.float32), train=False)
    np.testing.assert_array_equal(Head().apply(variables, x, train=False), expected)


def test_head_is_mean_and_linear_layer():
    x = images(2, 5, 7, 16)
    variables = random_variables(Head(), x, np.float32)
    fc = variables["params"]["fc"]
    actual = Head().apply(variables, x, train=False)
    assert_close(actual, x.mean((1, 2)) @ fc["kernel"] + fc["bias"], 1e-5)


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("attention", ["none", "nam", "nam_tied"])
def test_shortcut_without_parameters_subsamples_and_pads(attention, strides):
    x = images(2, 6, 4, 3)
    block = BasicBlock(
        features=8,
        strides=strides,
        attention=attention,
        options=blocks.shared_options(train=False, dtype=None, axis_name=None),
        projection=False,
        last_scale_init=nn.initializers.zeros,  # nothing but the shortcut is left
    )
    y, _ = jax.jit(block.init_with_output)(KEY, x)
    np.testing.assert_array_equal(y[..., :3], np.maximum(x[:, ::strides, ::strides], 0))
    np.testing.assert_array_equal(y[..., 3:], np.zeros_like(y[..., 3:]))


class Branch(nn.Module):
    """The end of a residual branch."""

    attention: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x, use_running_average):
        options = blocks.shared_options(
            train=not use_running_average, dtype=self.dtype, axis_name=None
        )
        return blocks.norm_and_attention(x, self.attention, options, norm_name="bn2")


def test_tied_attention_gates_with_the_scale_of_its_norm():
    x = images(2, 5, 7, 6)
    tied = random_variables(Branch("nam_tied"), x, np.float32)
    plain = {collection: {"bn2": tree["nam_bn"]} for collection, tree in tied.items()}
    y = Branch("none").apply(plain, x, True)
    magnitude = np.abs(tied["params"]["nam_bn"]["scale"])
    expected = y * jax.nn.sigmoid(magnitude / magnitude.sum() * y)
    assert_close(Branch("nam_tied").apply(tied, x, True), expected, 1e-6)


@pytest.mark.parametrize("attention", NAMES)
def test_branch_ends_in_the_dtype_of_the_network(attention):
    x = jnp.ones((2, 5, 7, 32), jnp.bfloat16)
    branch = Branch(attention, jnp.bfloat16)
    y, _ = jax.eval_shape(lambda x: branch.init_with_output(KEY, x, False), x)
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize(("attention", "more"), [("nam_channel", 0), ("nam_tied", 0), ("nam", 2)])
def test_channel_attention_costs_no_reduction(attention, more):
    def count(name):
        variables = random_variables(Branch(name), x, np.float32)
        apply = functools.partial(Branch(name).apply, mutable="batch_stats")
        return reductions(lambda x: apply(variables, x, False), x, larger_than=35)

    # The norm takes the means of x and x²; so does the norm of the pixels, of which are 35.
    x = images(2, 5, 7, 6)
    assert count("none") == 2
    assert count(attention) == 2 + more


class Network(nn.Module):
    """A small ResNet, called as attention modules are."""

    block: type[nn.Module]
    attention: str
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        options = {"attention": self.attention, "axis_name": self.axis_name}
        model = ResNet(self.block, (1, 1), num_classes=3, stem="cifar", width=4, **options)
        return model(x, train=not use_running_average)


each_network = pytest.mark.parametrize(
    ("block", "attention"), [(BasicBlock, "nam_tied"), (Bottleneck, "nam")]
)


def test_four_devices_are_one_batch(x64):
    x, cotangent = np.float64(images(8, 6, 4, 3)), np.float64(images(8, 3, seed=1))
    network = Network(BasicBlock, "nam")
    variables = random_variables(network, x)
    expected = train_step(network, variables, x, cotangent)
    actual = sharded_train_step(network.clone(axis_name="data"), variables, x, cotangent)
    on_all = jax.tree.map(lambda value: np.stack([value] * 4), expected.statistics)
    assert_close(actual.y, expected.y)
    assert_close(actual.statistics, on_all)
    assert_close((actual.dparams, actual.dx), (expected.dparams, expected.dx))


@each_network
def test_training_decays_all_statistics_by_a_tenth(block, attention):
    x = images(4, 6, 4, 3)
    network = Network(block, attention)
    variables = random_variables(network, x, np.float32)
    apply = jax.jit(functools.partial(network.apply, mutable="batch_stats"), static_argnums=2)
    other = {**variables, "batch_stats": jax.tree.map(lambda s: s + 1, variables["batch_stats"])}
    (y, new), (other_y, other_new) = (apply(v, x, False) for v in (variables, other))
    # The batch's own part is the same in both, and so is the output.
    np.testing.assert_array_equal(y, other_y)
    difference = jax.tree.map(lambda a, b: a - b, other_new, new)
    assert_close(difference, jax.tree.map(lambda d: np.full(d.shape, 0.9), difference), 1e-4)


@each_network
def test_evaluation_leaves_the_statistics_alone(block, attention):
    x = images(4, 6, 4, 3)
    network = Network(block, attention)
    variables = random_variables(network, x, np.float32)
    apply = jax.jit(functools.partial(network.apply, mutable="batch_stats"), static_argnums=2)
    _, update = apply(variables, x, True)
    jax.tree.map(np.testing.assert_array_equal, update["batch_stats"], variables["batch_stats"])
