"""MobileNetV2: its blocks, their resolutions, and where attention stands."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from nam_jax import models
from nam_jax.attention import NAMES
from nam_jax.models import blocks
from nam_jax.models.mobilenet_v2 import InvertedResidual, scaled_features
from tests.helpers.networks import owns_parameters
from tests.helpers.values import with_slow

BLOCKS = {f"block{number}" for number in range(1, 18)}
IN_BLOCKS = [name for name in NAMES if name not in ("none", "nam_tied", "bam")]
# Table 2 of the paper, a row a block: expansion, features, and stride with the ImageNet stem.
TABLE = [(1, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), *[(6, 32, 1)] * 2, (6, 64, 2)]
TABLE += [*[(6, 64, 1)] * 3, *[(6, 96, 1)] * 3, (6, 160, 2), *[(6, 160, 1)] * 2, (6, 320, 1)]


def create(attention="none", stem="imagenet", **options):
    return models.create("mobilenet_v2", num_classes=10, attention=attention, stem=stem, **options)


@functools.cache
def shapes(attention="none", stem="imagenet", size=(64, 32), **options):
    x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    model = create(attention, stem, **options)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)["params"]


def outputs(stem, size, kind=InvertedResidual):
    """The shapes that modules of a kind put out, by name."""
    shapes = {}

    def note(next_function, args, kwargs, context):
        y = next_function(*args, **kwargs)
        if isinstance(context.module, kind):
            shapes[context.module.name] = y.shape[1:]
        return y

    with nn.intercept_methods(note):
        model = create(stem=stem)
        x = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
    return shapes


@pytest.mark.parametrize(
    ("stem", "size", "divisor"),
    [
        ("imagenet", (224, 192), 2),
        pytest.param("cifar", (32, 48), 1, marks=pytest.mark.slow),
    ],
)
def test_blocks_are_those_of_the_paper(stem, size, divisor):
    actual = outputs(stem, size)
    assert set(actual) == BLOCKS
    for number, (_, features, strides) in enumerate(TABLE, start=1):
        divisor *= 1 if stem == "cifar" and features == 24 else strides
        expected = (size[0] // divisor, size[1] // divisor, features)
        assert actual[f"block{number}"] == expected
    assert divisor == (32 if stem == "imagenet" else 8)


def test_kernels_are_those_of_the_paper():
    params = shapes()
    inputs = 32
    for number, (expansion, features, _) in enumerate(TABLE, start=1):
        kernels = {
            name.removesuffix("_conv"): tree["kernel"].shape
            for name, tree in params[f"block{number}"].items()
            if name.endswith("conv")
        }
        hidden = expansion * inputs
        expected = {"depthwise": (3, 3, 1, hidden), "project": (1, 1, hidden, features)}
        expected |= {"expand": (1, 1, inputs, hidden)} if expansion > 1 else {}
        assert kernels == expected
        inputs = features
    assert params["stem_conv"]["kernel"].shape == (3, 3, 3, 32)
    assert params["last_conv"]["kernel"].shape == (1, 1, 320, 1280)


@with_slow("attention", IN_BLOCKS, set(IN_BLOCKS) - {"nam"})
def test_every_block_has_attention(attention):
    params = shapes(attention)
    with_own = BLOCKS if owns_parameters(attention) else set()
    assert {name for name, tree in params.items() if "attention" in tree} == with_own
    assert set(params) == BLOCKS | {"stem_conv", "stem_bn", "last_conv", "last_bn", "fc"}


@pytest.mark.parametrize(
    ("stem", "after"),
    [("imagenet", (1, 3, 6, 13)), pytest.param("cifar", (3, 6, 13), marks=pytest.mark.slow)],
)
def test_bam_stands_where_the_resolution_drops(stem, after):
    params, plain = shapes("bam", stem), shapes("none", stem)
    names = {f"bam{number}" for number in after}
    assert set(params) == set(plain) | names
    assert {name: tree for name, tree in params.items() if name not in names} == plain
    for number in after:
        gated = params[f"bam{number}"]["channel"]["fc2"]["bias"].shape[0]
        assert gated == TABLE[number - 1][1]


def test_tied_attention_renames_the_norm_of_the_projection():
    plain, tied = (traverse_util.flatten_dict(shapes(name)) for name in ("none", "nam_tied"))
    renamed = {
        tuple("nam_bn" if key == "project_bn" else key for key in path): leaf
        for path, leaf in plain.items()
    }
    assert tied == renamed


def test_input_is_added_where_shapes_allow():
    # With the scale of every residual branch at zero, these blocks are the identity.
    zeros, ones = set(), set()
    model = create("nam", "cifar", width_multiplier=0.25, zero_init_last_scale=True)

    def scales(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)["params"]
        return {name: params[name]["project_bn"]["scale"] for name in BLOCKS}

    for name, scale in jax.jit(scales)(jax.random.key(0, impl="rbg")).items():
        (zeros if not scale.any() else ones).add(name)
        assert len(np.unique(scale)) == 1
    repeated = {3, 5, 6, 8, 9, 10, 12, 13, 15, 16}
    # Of width 0.25, blocks 1 and 2 keep the 8 features of the stem too; both have stride 1.
    assert zeros == {f"block{number}" for number in repeated | {1, 2}}
    assert ones == BLOCKS - zeros


def residual(features, strides, zero):
    options = {"use_running_average": True, "dtype": None, "axis_name": None}
    return InvertedResidual(features, strides, 6, blocks.Attention("none"), options, zero)


@pytest.mark.parametrize(
    ("features", "strides", "is_residual"),
    [
        (8, 1, True),
        pytest.param(8, 2, False, marks=pytest.mark.slow),
        pytest.param(16, 1, False, marks=pytest.mark.slow),
    ],
)
def test_residual_block_starts_as_the_identity(features, strides, is_residual):
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)
    y, variables = jax.jit(residual(features, strides, True).init_with_output)(jax.random.key(0), x)
    assert y.shape == (2, 4 // strides, 6 // strides, features)
    assert np.array_equal(y, x) == is_residual
    assert variables["params"]["project_bn"]["scale"].any() != is_residual


def test_projection_has_no_relu():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 8)).astype(np.float32)
    y, _ = jax.jit(residual(16, 1, False).init_with_output)(jax.random.key(0), x)
    assert (y < 0).any()


@pytest.mark.parametrize(
    ("features", "multiplier", "expected"),
    [
        (32, 1.0, 32),
        (32, 0.25, 8),
        (16, 0.25, 8),  # at least 8
        (24, 0.5, 16),  # 12 is halfway: up
        (24, 0.75, 24),  # 18 is nearest to 16, which is more than 10 % less
        (32, 0.35, 16),  # 11.2 is nearest to 8, which is more than 10 % less
        (24, 1.4, 32),  # 33.6, of which 32 is 95 %
        (96, 0.35, 32),  # 33.6
        (160, 1.4, 224),
        (320, 1.3, 416),
        (1280, 1.4, 1792),
    ],
)
def test_features_are_multiples_of_eight_and_never_a_tenth_less(features, multiplier, expected):
    assert scaled_features(features, multiplier) == expected


def parameters_of_width(multiplier, num_classes=1000):
    """Convolutions, two numbers a feature for every BatchNorm, and the classifier."""

    def width(features):
        return scaled_features(features, multiplier)

    inputs = width(32)
    total = 27 * inputs + 2 * inputs
    for expansion, features, _ in TABLE:
        hidden, out = inputs * expansion, width(features)
        total += (inputs + 2) * hidden if expansion > 1 else 0
        total += (9 + 2) * hidden + (hidden + 2) * out
        inputs = out
    last = max(1280, width(1280))
    return total + (inputs + 2) * last + (last + 1) * num_classes


# With 1,000 classes, as Keras and torchvision have them.
PUBLISHED = {0.5: 1_968_680, 1.0: 3_504_872, 1.4: 6_108_776}


@with_slow("multiplier", [0.25, 0.5, 0.75, 1.0, 1.4], (0.25, 0.75, 1.0, 1.4))
def test_parameter_count_of_every_width(multiplier):
    params = shapes(width_multiplier=multiplier)
    actual = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert actual == parameters_of_width(multiplier, 10)
    if multiplier in PUBLISHED:
        assert parameters_of_width(multiplier) == PUBLISHED[multiplier]
