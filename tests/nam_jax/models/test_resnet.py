"""ResNets: where attention stands, how they start, blocks, head, statistics and devices."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from nam_jax import models
from nam_jax.attention import NAMES
from nam_jax.models import blocks
from nam_jax.models.resnet import SHORTCUTS, BasicBlock, Bottleneck, ResNet
from nam_jax.sparsity import nam_scales
from nam_jax.variables import abstract_variables
from tests.helpers.arrays import assert_close
from tests.helpers.networks import (
    owns_parameters,
    random_variables,
    reductions,
    sharded_train_step,
    train_step,
)
from tests.helpers.values import with_slow

# Of JAX's generators the one whose compilation takes the least time.
KEY = jax.random.key(0, impl="rbg")
RESNETS = [name for name in models.NAMES if name.startswith("resnet")]


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


@pytest.mark.parametrize(
    ("attention", "shortcut", "first", "strides"),
    [
        ("none", "pad_end", 0, 1),
        ("nam", "pad_end", 0, 2),
        ("none", "pad_centre", 2, 2),
        ("nam_tied", "pad_centre", 2, 1),
    ],
)
def test_shortcut_without_parameters_subsamples_and_pads(attention, shortcut, first, strides):
    x = images(2, 6, 4, 3)
    block = BasicBlock(
        features=8,
        strides=strides,
        attention=blocks.Attention(attention),
        options=blocks.shared_options(train=False, dtype=None, axis_name=None),
        shortcut=shortcut,
        last_scale_init=nn.initializers.zeros,  # nothing but the shortcut is left
    )
    y, _ = jax.jit(block.init_with_output)(KEY, x)
    # Of 8 features 5 are zero: 2 before and 3 after, or all of them after.
    expected = np.zeros_like(y)
    expected[..., first : first + 3] = np.maximum(x[:, ::strides, ::strides], 0)
    np.testing.assert_array_equal(y, expected)


def test_shortcut_is_that_of_the_network_or_the_one_asked_for():
    defaults = {name: models.create(name, num_classes=2).shortcut for name in RESNETS}
    small = {f"resnet{depth}" for depth in (20, 32, 44, 56, 110)}
    assert {name for name, shortcut in defaults.items() if shortcut == "pad_centre"} == small
    assert {defaults[name] for name in defaults.keys() - small} == {"projection"}
    for name in ("resnet18", "resnet20"):
        for shortcut in SHORTCUTS:
            asked = models.create(name, num_classes=2, shortcut=shortcut)
            assert asked.shortcut == shortcut


def test_projection_of_a_small_network_has_parameters():
    block = shapes("resnet20", "none", "projection")["params"]["layer2_0"]
    assert block["downsample_conv"]["kernel"].shape == (1, 1, 16, 32)
    assert "downsample_conv" not in shapes("resnet20", "none")["params"]["layer2_0"]


class Branch(nn.Module):
    """The end of a residual branch."""

    attention: str
    dtype: Any = None

    @nn.compact
    def __call__(self, x, use_running_average):
        options = blocks.shared_options(
            train=not use_running_average, dtype=self.dtype, axis_name=None
        )
        return blocks.norm_and_attention(
            x, blocks.Attention(self.attention), options, norm_name="bn2"
        )


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


@pytest.mark.slow
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


# Whole networks.


@functools.cache
def shapes(name, attention, shortcut=""):
    """Shapes of a network's variables; the weights themselves are never drawn."""
    options = {"attention": attention, "stem": "cifar", "shortcut": shortcut}
    model = models.create(name, num_classes=10, **options)
    return abstract_variables(model, (1, 32, 32, 3))


@pytest.mark.parametrize(
    ("attention", "per_block"),
    [("none", 0), ("nam_channel", 1), ("nam_spatial", 1), ("nam", 2), ("nam_tied", 1)],
)
@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet20", 9), pytest.param("resnet50", 16, marks=pytest.mark.slow)]
)
def test_sparsity_finds_every_scale(name, blocks, attention, per_block):
    scales = nam_scales(shapes(name, attention)["params"])
    assert len(scales) == blocks * per_block


IN_BLOCKS = [name for name in NAMES if name not in ("none", "nam_tied", "bam")]


@with_slow("attention", IN_BLOCKS, ("half", "coordatt"))
@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet20", (3, 3, 3)), pytest.param("resnet50", (3, 4, 6, 3), marks=pytest.mark.slow)],
)
def test_every_block_has_attention(name, stages, attention):
    params = shapes(name, attention)["params"]
    expected = {f"layer{s}_{b}" for s, blocks in enumerate(stages, 1) for b in range(blocks)}
    with_own = expected if owns_parameters(attention) else set()
    assert {block for block, tree in params.items() if "attention" in tree} == with_own
    assert expected | {"conv1", "bn1", "fc"} == set(params)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 2),
        pytest.param("resnet18", 3, marks=pytest.mark.slow),
        pytest.param("resnet50", 3, marks=pytest.mark.slow),
    ],
)
def test_bam_stands_after_all_stages_but_the_last(name, count):
    plain, bam = (shapes(name, attention)["params"] for attention in ("none", "bam"))
    names = {f"bam{stage}" for stage in range(1, count + 1)}
    assert set(bam) == set(plain) | names
    assert {block: tree for block, tree in bam.items() if block not in names} == plain
    # BAM 1 gates what stage 1 puts out, and so on.
    for stage in range(1, count + 1):
        features = bam[f"bam{stage}"]["channel"]["fc2"]["bias"].shape
        assert bam[f"layer{stage + 1}_0"]["conv1"]["kernel"].shape[2:3] == features


@pytest.mark.parametrize(
    ("name", "last"), [("resnet20", "bn2"), pytest.param("resnet50", "bn3", marks=pytest.mark.slow)]
)
def test_tied_attention_renames_the_last_norm(name, last):
    plain, tied = (shapes(name, attention) for attention in ("none", "nam_tied"))
    renamed = {
        (*path[:2], "nam_bn", *path[3:]) if path[1] != "bn1" and path[2] == last else path: leaf
        for path, leaf in traverse_util.flatten_dict(plain).items()
    }
    assert traverse_util.flatten_dict(tied) == renamed


@functools.cache
def initial(name, attention="none", leaves="", **options):
    """Initial parameters by path, of four blocks of width 16; those whose path ends in leaves."""
    model = models.create(
        name, num_classes=10, attention=attention, stem="cifar", width=16, **options
    ).clone(stage_sizes=(1, 1, 1, 1))

    def init(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return {path: leaf for path, leaf in flat.items() if path.endswith(leaves)}

    # Compiled, so that the forward pass and the leaves not asked for cost nothing.
    return jax.jit(init)(KEY)


@pytest.mark.slow
def test_convolutions_start_he_uniform():
    kernels = [leaf for leaf in initial("resnet18", "nam").values() if leaf.ndim == 4]
    assert len(kernels) == 1 + 4 * 2 + 3
    for kernel in kernels:
        bound = math.sqrt(6 / math.prod(kernel.shape[:3]))
        # Of 400 and more uniform draws one comes within 3 % of the bound, all but surely.
        assert 0.97 * bound < np.abs(kernel).max() <= bound
        assert np.abs(kernel.mean()) < 0.1 * bound


def test_classifier_starts_as_in_pytorch():
    params = initial("resnet18", "nam")
    bound = 1 / math.sqrt(128)
    assert 0.97 * bound < np.abs(params["fc/kernel"]).max() <= bound
    assert 0.5 * bound < np.abs(params["fc/bias"]).max() <= bound


def test_norms_start_at_the_identity():
    norms = {k: v for k, v in initial("resnet18", "nam").items() if v.ndim < 4 and "fc" not in k}
    assert len(norms) == 2 * (1 + 4 * 4 + 3)
    for path, leaf in norms.items():
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, path.endswith("scale")))


@pytest.mark.parametrize("zero", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("name", "attention", "last"),
    [
        pytest.param("resnet18", "none", "bn2", marks=pytest.mark.slow),
        ("resnet18", "nam", "bn2"),
        pytest.param("resnet50", "nam_channel", "bn3", marks=pytest.mark.slow),
        pytest.param("resnet50", "nam_tied", "nam_bn", marks=pytest.mark.slow),
    ],
)
def test_zero_init_is_of_every_last_norm(name, attention, last, zero):
    scales = initial(name, attention, "scale", zero_init_last_scale=zero)
    zeros = {path for path, leaf in scales.items() if not leaf.any()}
    # layer1_0/bn2/scale, but not layer1_0/attention/nam_bn/scale.
    lasts = {path for path in scales if path.startswith("layer") and path.split("/")[1] == last}
    assert len(lasts) == 4
    assert zeros == (lasts if zero else set())
    assert all((leaf == 1).all() for path, leaf in scales.items() if path not in zeros)
