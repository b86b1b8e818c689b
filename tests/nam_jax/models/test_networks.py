"""What both families have to do with every attention, in networks cut short."""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util

from nam_jax.attention import NAMES
from nam_jax.models import mobilenet_v2
from nam_jax.models.mobilenet_v2 import MobileNetV2, Stage
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.arrays import assert_close
from tests.helpers.networks import random_variables

# A residual block and one that halves the resolution: what there is to compile, and no more.
STAGES = (Stage(1, 16, 1, 1), Stage(6, 16, 1, 1), Stage(6, 32, 1, 2))
FAMILIES = {
    "resnet": functools.partial(ResNet, BasicBlock, (1, 1), width=16),
    "mobilenet_v2": functools.partial(MobileNetV2, width_multiplier=0.5),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
each_name = pytest.mark.parametrize("name", NAMES)

IMAGES = (2, 12, 6, 3)
ONE_IMAGE = (1, 6, 4, 3)
# Every one of 12 layers rounds to 2⁻⁸, in no common direction.
BFLOAT16 = math.sqrt(12) * 2.0**-8
# What takes the least time to compile. Gradients of a maximum come out as NaN at level 0 (XLA for
# the CPU, of `jnp.max(x * a + b)` alone too), so that they are compiled as usual.
CHEAP = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def images(shape=IMAGES, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(family, name, dtype=None):
    return FAMILIES[family](num_classes=5, attention=name, stem="cifar", dtype=dtype)


class Called:
    """A network called as attention modules are, with MobileNetV2's stages cut short."""

    def __init__(self, module):
        self.module = module

    def init(self, key, x, use_running_average):
        with mock.patch.object(mobilenet_v2, "STAGES", STAGES):
            return self.module.init(key, x, train=not use_running_average)

    def apply(self, variables, x, use_running_average):
        with mock.patch.object(mobilenet_v2, "STAGES", STAGES):
            return self.module.apply(
                variables, x, train=not use_running_average, mutable="batch_stats"
            )


@functools.cache
def variables_of(family, name, shape=IMAGES, shift=0):
    """Variables with kernels of a size that keeps the activations near 1."""

    def scaled(path, leaf):
        leaf = np.roll(leaf, shift) * (1 + shift * (path[-1] == "kernel"))
        return leaf * math.sqrt(2 / math.prod(leaf.shape[:-1])) if path[-1] == "kernel" else leaf

    drawn = random_variables(Called(network(family, name)), images(shape), np.float32)
    flat = traverse_util.flatten_dict(drawn)
    return traverse_util.unflatten_dict(
        {path: np.float32(scaled(path, leaf)) for path, leaf in flat.items()}
    )


@functools.cache
def evaluate(family, name, dtype=None):
    called = Called(network(family, name, dtype))
    return jax.jit(lambda v, x: called.apply(v, x, True)[0], compiler_options=CHEAP)


@functools.cache
def train(family, name):
    """A compiled training step: gradients of params and x, logits, new statistics."""
    called = Called(network(family, name))

    def loss(params, statistics, x):
        logits, update = called.apply({"params": params, "batch_stats": statistics}, x, False)
        return jnp.square(logits - 1).sum(), (logits, update["batch_stats"])

    options = None if name in ("cbam", "tam") else CHEAP
    return jax.jit(jax.grad(loss, (0, 2), has_aux=True), compiler_options=options)


@each_family
@each_name
def test_logits(family, name):
    logits = evaluate(family, name)(variables_of(family, name), images())
    assert logits.shape == (2, 5)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    if name not in ("none", "nam_tied"):
        plain = without_attention(variables_of(family, name), name)
        assert not np.allclose(logits, evaluate(family, "none")(plain, images()), rtol=1e-3)


def is_attention(path, name):
    return "attention" in path or (name == "bam" and any(key.startswith("bam") for key in path))


def without_attention(variables, name):
    flat = traverse_util.flatten_dict(variables)
    rest = {path: leaf for path, leaf in flat.items() if not is_attention(path, name)}
    return traverse_util.unflatten_dict(rest)


@each_family
@each_name
def test_one_image_trains(family, name):
    variables, x = variables_of(family, name, ONE_IMAGE), images(ONE_IMAGE)
    step = train(family, name)(variables["params"], variables["batch_stats"], x)
    (dparams, dx), (logits, statistics) = step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
    assert logits.shape == (1, 5)
    assert jax.tree.structure(statistics) == jax.tree.structure(variables["batch_stats"])
    assert np.abs(dx).max() > 0
    flat = traverse_util.flatten_dict(dparams)
    own = [leaf for path, leaf in flat.items() if is_attention(path, name)]
    assert bool(own) == (name not in ("none", "nam_tied"))
    assert all(np.abs(leaf).max() > 0 for leaf in own[-1:])


@each_family
@each_name
def test_vmap_over_parameters_is_a_loop(family, name):
    several = [variables_of(family, name, shift=shift) for shift in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    called = Called(network(family, name))
    mapped = jax.jit(
        jax.vmap(lambda v, x: called.apply(v, x, True)[0], (0, None)), compiler_options=CHEAP
    )
    loop = np.stack([evaluate(family, name)(variables, images()) for variables in several])
    assert not np.allclose(*loop, rtol=1e-2)
    assert_close(mapped(stacked, images()), loop, 1e-5)


@each_family
@each_name
def test_bfloat16_logits_are_float32_and_near(family, name):
    variables = variables_of(family, name)
    actual = evaluate(family, name, jnp.bfloat16)(variables, images())
    expected = evaluate(family, name)(variables, images())
    assert actual.dtype == np.float32
    assert_close(actual, expected, BFLOAT16)
    assert np.abs(actual - expected).max() > 1e-5 * np.abs(expected).max()


@each_family
@each_name
def test_serialisation_brings_everything_back(family, name):
    variables = variables_of(family, name)
    blank = jax.tree.map(np.zeros_like, variables)
    restored = serialization.from_bytes(blank, serialization.to_bytes(variables))
    assert jax.tree.structure(restored) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize("name", ["nam_tied", "cbam", "bam"])
@each_family
def test_jit_changes_nothing(family, name):
    variables = variables_of(family, name)
    eager, _ = Called(network(family, name)).apply(variables, images(), True)
    assert_close(eager, evaluate(family, name)(variables, images()), 1e-5)
