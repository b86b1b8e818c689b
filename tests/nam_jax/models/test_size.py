"""The size of a network: parameters and multiply-adds, by layer."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nam_jax import SqueezeExcite, models
from nam_jax.models import size
from nam_jax.models.size import Layer, Size


@functools.cache
def layers(name, stem, attention):
    pixels, num_classes = (32, 100) if stem == "cifar" else (224, 1000)
    model = models.create(name, num_classes=num_classes, attention=attention, stem=stem)
    return size.layers(model, (pixels, pixels, 3))


@pytest.mark.parametrize(
    ("stem", "attention", "parameters", "multiply_adds"),
    [
        ("cifar", "none", "23,705,252", "1.298"),
        ("cifar", "nam_channel", "23,735,460", "1.298"),
        ("cifar", "nam_spatial", "23,714,308", "1.298"),
        ("cifar", "bam", "24.063M", "1.325"),
        # The reference has 1.304: it counts the biases of linear layers, 32,196 more.
        ("cifar", "cbam", "26.238M", "1.303"),
        ("cifar", "se", "26.220M", "1.301"),
        ("imagenet", "none", "25,557,032", "4.089"),
        ("imagenet", "nam_channel", "25,587,240", "4.089"),
        ("imagenet", "nam", "25,614,974", "4.089"),
        ("imagenet", "bam", "25.915M", "4.171"),
        ("imagenet", "cbam", "28.090M", "4.096"),
        ("imagenet", "se", "28.072M", "4.092"),
        # Its authors give 4.169 beside 4.122 without attention, 0.047 more as here.
        ("imagenet", "tam", "25.562M", "4.136"),
    ],
)
def test_sizes_of_resnet50_are_those_of_the_reference(stem, attention, parameters, multiply_adds):
    total = size.total(layers("resnet50", stem, attention))
    exact, rounded = f"{total.parameters:,}", f"{total.parameters / 1e6:.3f}M"
    assert parameters == (rounded if parameters.endswith("M") else exact)
    assert f"{total.multiply_adds / 1e9:.3f}" == multiply_adds


# Multiply-adds of one module over height and width h, c channels and c/16 reduced ones, r.
BY_HAND = {
    "se": lambda h, c, r: 2 * c * r,
    # The mean and the maximum both go through the MLP; the map has two planes.
    "cbam": lambda h, c, r: 2 * (2 * c * r) + 2 * 7 * 7 * h * h,
    # The planes of W and C, H and C, H and W.
    "tam": lambda h, c, r: 2 * 7 * 7 * (h * c + h * c + h * h),
    # 1×1, twice 3×3, and 1×1 to one channel.
    "bam": lambda h, c, r: 2 * c * r + h * h * (c * r + 2 * 9 * r * r + r),
}


@pytest.mark.parametrize(
    ("stem", "attention"),
    [
        ("cifar", "se"),
        ("cifar", "bam"),
        ("cifar", "cbam"),
        ("imagenet", "bam"),
        ("imagenet", "cbam"),
        ("imagenet", "tam"),
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


@pytest.mark.parametrize(
    ("attention", "parameters"), [("nam_channel", 3008), ("nam_spatial", 45472)]
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
