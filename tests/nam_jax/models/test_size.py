"""The size of a network: parameters and multiply-adds, by layer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nam_jax import SqueezeExcite, models
from nam_jax.models import size
from nam_jax.models.size import Layer, Size
from nam_jax.variables import abstract_variables


@functools.cache
def layers(name, stem, attention):
    pixels, num_classes = (32, 100) if stem == "cifar" else (224, 1000)
    model = models.create(name, num_classes=num_classes, attention=attention, stem=stem)
    return size.layers(model, (pixels, pixels, 3))


@pytest.mark.parametrize(
    ("attention", "parameters", "multiply_adds"),
    [
        ("none", 25_557_032, "4.089"),
        pytest.param("nam_channel", 25_587_240, "4.089", marks=pytest.mark.slow),
        pytest.param("nam", 25_614_974, "4.089", marks=pytest.mark.slow),
        pytest.param("bam", 25_915_099, "4.171", marks=pytest.mark.slow),
        pytest.param("cbam", 28_089_624, "4.096", marks=pytest.mark.slow),
        pytest.param("se", 28_071_976, "4.092", marks=pytest.mark.slow),
        # Its authors give 4.169 beside 4.122 without attention, 0.047 more as here. A gate has
        # 2·49 weights, a scale and a shift.
        pytest.param("tam", 25_557_032 + 16 * 3 * 100, "4.136", marks=pytest.mark.slow),
        pytest.param("half", 25_557_032, "4.089", marks=pytest.mark.slow),
        # Kernels of 5, and of 7 for 2048 channels. Its authors have 80, of 3 in the first stage.
        pytest.param("eca", 25_557_032 + 13 * 5 + 3 * 7, "4.089", marks=pytest.mark.slow),
        pytest.param("simam", 25_557_032, "4.089", marks=pytest.mark.slow),
        # Of c channels and f = max(8, c/32) features each has 3 c f + 3 f + 2 c.
        pytest.param("coordatt", 25_557_032 + 1_917_832, "4.116", marks=pytest.mark.slow),
    ],
)
def test_sizes_of_resnet50_are_those_of_the_reference(attention, parameters, multiply_adds):
    total = size.total(layers("resnet50", "imagenet", attention))
    assert total.parameters == parameters
    assert f"{total.multiply_adds / 1e9:.3f}" == multiply_adds


@pytest.mark.parametrize(
    ("depth", "millions"),
    [
        (20, "0.27"),
        pytest.param(32, "0.46", marks=pytest.mark.slow),
        pytest.param(44, "0.66", marks=pytest.mark.slow),
        pytest.param(56, "0.85", marks=pytest.mark.slow),
        pytest.param(110, "1.73", marks=pytest.mark.slow),
    ],
)
def test_sizes_of_small_resnets(depth, millions):
    """Table 6 of He et al. 2015 (1.7 for ResNet-110), and 6n + 2 layers by hand."""
    module = models.create(f"resnet{depth}", num_classes=10, stem="cifar")
    variables = abstract_variables(module, (1, 32, 32, 3))["params"]
    kernels = [path for path in flatten_dict(variables) if path[-1] == "kernel"]
    assert len(kernels) == depth
    blocks = (depth - 2) // 6
    # Two convolutions of 9 weights a pair of features, and four numbers for their BatchNorms.
    within = sum(2 * 9 * width**2 + 4 * width for width in (16, 32, 64)) * blocks
    narrower = sum(9 * (width * width // 2) for width in (32, 64))
    total = 3 * 9 * 16 + 2 * 16 + within - narrower + 64 * 10 + 10
    assert size.parameters(variables) == total
    assert f"{total / 1e6:.2f}" == millions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "parameters", "multiply_adds"),
    [
        ("none", 23_705_252, "1.298"),
        ("nam_channel", 23_735_460, "1.298"),
        ("bam", 24_063_319, "1.325"),
        # The reference has 1.304: it counts the biases of linear layers, 32,196 more.
        ("cbam", 26_237_844, "1.303"),
        ("se", 26_220_196, "1.301"),
    ],
)
def test_sizes_of_resnet50_for_small_images(attention, parameters, multiply_adds):
    total = size.total(layers("resnet50", "cifar", attention))
    assert total.parameters == parameters
    assert f"{total.multiply_adds / 1e9:.3f}" == multiply_adds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "attention", "parameters"),
    [
        ("mobilenet_v2", "nam", 3_504_872 + 3_008 + 45_472),
        pytest.param("mobilenet_v2", "nam_tied", 3_504_872, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "tam", 3_504_872 + 17 * 3 * 100, marks=pytest.mark.slow),
        # Those of torchvision.
        ("mobilenet_v2", "none", 3_504_872),
        ("resnet18", "none", 11_689_512),
        pytest.param("resnet34", "none", 21_797_672, marks=pytest.mark.slow),
        pytest.param("resnet101", "none", 44_549_160, marks=pytest.mark.slow),
    ],
)
def test_parameters_of_other_networks(name, attention, parameters):
    model = models.create(name, num_classes=1000, attention=attention)
    assert size.parameters(abstract_variables(model, (1, 224, 224, 3))["params"]) == parameters


def test_parameters_of_resnet20():
    # The paper has 0.27 million.
    model = models.create("resnet20", num_classes=10, stem="cifar")
    assert size.parameters(abstract_variables(model, (1, 32, 32, 3))["params"]) == 269_722


# Multiply-adds of one module over height and width h, c channels and c/16 reduced ones, r.
BY_HAND = {
    "se": lambda h, c, r: 2 * c * r,
    # The mean and the maximum both go through the MLP; the map has two planes.
    "cbam": lambda h, c, r: 2 * (2 * c * r) + 2 * 7 * 7 * h * h,
    # The planes of W and C, H and C, H and W.
    "tam": lambda h, c, r: 2 * 7 * 7 * (h * c + h * c + h * h),
    # A kernel for all channels; SimAM has squares and quotients alone.
    "eca": lambda h, c, r: c * (7 if c == 2048 else 5),
    "simam": lambda h, c, r: 0,
    # Rows and columns, by half of the reduced channels.
    "coordatt": lambda h, c, r: 2 * (2 * h) * c * (r // 2),
    # 1×1, twice 3×3, and 1×1 to one channel.
    "bam": lambda h, c, r: 2 * c * r + h * h * (c * r + 2 * 9 * r * r + r),
}


@pytest.mark.parametrize(
    ("stem", "attention"),
    [
        pytest.param("cifar", "se", marks=pytest.mark.slow),
        pytest.param("cifar", "bam", marks=pytest.mark.slow),
        pytest.param("cifar", "cbam", marks=pytest.mark.slow),
        pytest.param("imagenet", "bam", marks=pytest.mark.slow),
        pytest.param("imagenet", "cbam", marks=pytest.mark.slow),
        pytest.param("imagenet", "tam", marks=pytest.mark.slow),
        pytest.param("imagenet", "eca", marks=pytest.mark.slow),
        pytest.param("imagenet", "simam", marks=pytest.mark.slow),
        pytest.param("imagenet", "coordatt", marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_of_attention_alone(stem, attention):
    expected = 0
    for stage, num_blocks in enumerate((3, 4, 6, 3)):
        h, c = (32 if stem == "cifar" else 56) // 2**stage, 256 * 2**stage
        modules = stage < 3 if attention == "bam" else num_blocks
        expected += modules * BY_HAND[attention](h, c, c // 16)
    network, plain = (layers("resnet50", stem, name) for name in (attention, "none"))
    alone = size.total(network, attention_only=True).multiply_adds
    assert alone == expected
    assert alone == size.total(network).multiply_adds - size.total(plain).multiply_adds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "parameters"),
    [("nam_channel", 3008), pytest.param("nam_spatial", 45472, marks=pytest.mark.slow)],
)
def test_mobilenet_v2_has_attention_in_all_17_blocks(attention, parameters):
    network, plain = (layers("mobilenet_v2", "imagenet", name) for name in (attention, "none"))
    assert size.total(network, attention_only=True) == Size(parameters, 0)
    assert size.total(network).parameters - size.total(plain).parameters == parameters
    assert sum(layer.path[-1] == "attention" for layer in network) == 17


def test_modules_without_parameters_of_their_own_are_listed():
    network, plain = (layers("resnet20", "cifar", name) for name in ("nam_tied", "none"))
    assert size.total(network) == size.total(plain)
    assert size.total(network, attention_only=True) == Size(0, 0)
    assert Layer(("layer3_2", "attention"), (8, 8, 64), Size(0, 0)) in network


class Block(nn.Module):
    """Attention under the name that the networks give it, and a layer called elsewhere too."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(6, name="dense")
        x = self.convolve(dense(dense(x)))
        return SqueezeExcite(reduction=2, name="attention")(x), jnp.zeros(3)

    @nn.compact
    def convolve(self, x):
        return nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv")(x))


class Network(nn.Module):
    """Layers at two depths, a product outside of layers, and traced values only."""

    @nn.compact
    def __call__(self, x, train):
        assert isinstance(x, jax.core.Tracer)
        # Called like the class, whose scope is around all others.
        x = nn.Conv(6, (1, 1), use_bias=False, name="Network")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x, _ = Block(name="block")(x)
        x = nn.Dense(5, name="fc")(x.mean((1, 2)))
        return x @ jnp.ones((5, 2))


def test_layers_come_in_order_with_shape_parameters_and_multiply_adds():
    pixels = 8 * 12
    assert size.layers(Network(), (8, 12, 4)) == [
        Layer(("Network",), (8, 12, 6), Size(4 * 6, pixels * 4 * 6)),
        Layer(("bn",), (8, 12, 6), Size(2 * 6, 0)),
        Layer(("block", "dense"), (8, 12, 6), Size(6 * 6 + 6, 2 * pixels * 6 * 6)),
        Layer(("block", "conv"), (4, 6, 8), Size(9 * 6 * 8 + 8, pixels // 4 * 9 * 6 * 8)),
        Layer(("block", "attention"), (4, 6, 8), Size(2 * 8 * 4, 2 * 8 * 4)),
        Layer(("fc",), (5,), Size(8 * 5 + 5, 8 * 5)),
        Layer((), (2,), Size(0, 5 * 2)),
    ]


class Layers(nn.Module):
    """Every kind of layer that counts, and some that do not."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), strides=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.Conv(6, (3, 5), feature_group_count=3, padding="VALID")(x))
        return nn.Dense(7)(x.reshape(len(x), -1))


def test_multiply_adds_count_strides_groups_and_borders():
    # The image is 12 × 16; a border counts as if it were there.
    strided = 6 * 8 * 6 * (3 * 3 * 4)
    grouped = 4 * 4 * 6 * (3 * 5 * 2)
    linear = 4 * 4 * 6 * 7
    assert size.multiply_adds(Layers(), (12, 16, 4)) == strided + grouped + linear


class Wrapped(nn.Module):
    """Layers inside compiled and rematerialised functions."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.remat(nn.jit(nn.Dense))(6, name="wrapped")(x)
        x, _ = nn.jit(nn.remat(Block))(name="block")(x)
        return jax.jit(lambda x: x @ jnp.ones((8, 3)))(x)


def test_layers_inside_other_functions_are_found():
    network = size.layers(Wrapped(), (2, 4, 3))
    assert [(layer.path, layer.size.multiply_adds) for layer in network] == [
        (("wrapped",), 8 * 3 * 6),
        (("block", "dense"), 2 * 8 * 6 * 6),
        (("block", "conv"), 2 * 9 * 6 * 8),
        (("block", "attention"), 2 * 8 * 4),
        ((), 2 * 8 * 3),
    ]


def test_parameters_are_counted_over_the_whole_tree():
    params = {"a": {"kernel": np.zeros((3, 4)), "bias": jnp.zeros(4)}, "b": np.zeros(())}
    assert size.parameters(params) == 12 + 4 + 1
    assert size.parameters({}) == 0
