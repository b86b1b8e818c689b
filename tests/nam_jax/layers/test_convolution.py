"""Convolutions in other terms: the values and gradients of XLA's own, and only on CPUs."""

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from nam_jax import models
from nam_jax.layers.convolution import FEW_CHANNELS, PARTS, convolution

pytestmark = pytest.mark.usefixtures("quick_compilation")
LAYOUT = ("NHWC", "HWIO", "NHWC")
# Map, channels, features, groups; height and width of the kernel; strides, padding; images (2).
CHEAPER = {
    "1x1": ((5, 6), 3, 4, 1, (1, 1), (1, 1), "SAME"),
    "1x1 strided": ((5, 6), 3, 4, 1, (1, 1), (2, 3), ((0, 0), (0, 0))),
    "3x3": ((5, 6), FEW_CHANNELS, 4, 1, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "5x3": ((7, 6), FEW_CHANNELS, 4, 1, (5, 3), (1, 1), "SAME"),
    "in parts": ((5, 6), FEW_CHANNELS, 4, 1, (3, 3), (1, 1), "SAME", 2 * PARTS),
    "larger than the map": ((2, 1), FEW_CHANNELS, 4, 1, (5, 5), (1, 1), "SAME"),
    "depthwise": ((5, 6), 4, 4, 4, (3, 3), (1, 1), ((1, 1), (1, 1))),
    "depthwise strided": ((5, 6), 4, 4, 4, (3, 5), (2, 3), ((1, 1), (2, 2))),
    "depthwise, larger than the map": ((1, 4), 4, 4, 4, (5, 3), (1, 1), ((1, 1), (1, 1))),
    "no images": ((5, 6), FEW_CHANNELS, 4, 1, (3, 3), (1, 1), "SAME", 0),
    "no images, 1x1": ((5, 6), 3, 4, 1, (1, 1), (1, 1), "SAME", 0),
    "odd number of images": ((5, 6), FEW_CHANNELS, 4, 1, (3, 3), (1, 1), "SAME", 3),
    "depthwise, uneven": ((6, 6), 4, 4, 4, (3, 3), (2, 2), "SAME"),
}
OTHERS = {
    "few channels": ((5, 6), 3, 4, 1, (3, 3), (1, 1), "SAME"),
    "3x3 strided": ((5, 6), FEW_CHANNELS, 4, 1, (3, 3), (2, 2), ((1, 1), (1, 1))),
    "unpadded": ((5, 6), FEW_CHANNELS, 4, 1, (3, 3), (1, 1), "VALID"),
    "1x1 padded": ((5, 6), 3, 4, 1, (1, 1), (1, 1), ((1, 1), (0, 0))),
    "groups": ((5, 6), 4, 4, 2, (3, 3), (1, 1), "SAME"),
    "negative padding": ((5, 6), 4, 4, 4, (3, 3), (1, 1), ((-1, 0), (0, 0))),
    "one channel": ((5, 6), 1, 1, 1, (3, 3), (1, 1), "SAME"),
    "a large depthwise kernel": ((9, 9), 2, 2, 2, (9, 9), (1, 1), "SAME"),
    "more features a group": ((5, 6), 4, 8, 4, (3, 3), (1, 1), "SAME"),
}

Case = tuple[Callable[..., jax.Array], jax.Array, jax.Array]


def case(name: str, dtype: str = "float64", **options) -> tuple[Case, Case]:
    """The convolution and XLA's own, either as a function with its two arguments."""
    size, channels, features, groups, window, strides, padding, *count = (CHEAPER | OTHERS)[name]
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (*(count or (2,)), *size, channels), dtype)
    kernel = jax.random.normal(keys[1], (*window, channels // groups, features), dtype)
    fixed = {"feature_group_count": groups, "dimension_numbers": LAYOUT, **options}
    own, xla = (
        functools.partial(lambda f, x, k: f(x, k, strides, padding, **fixed), f)
        for f in (convolution, jax.lax.conv_general_dilated)
    )
    return (own, x, kernel), (xla, x, kernel)


def scalar(f: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.sin(f(x, kernel)).sum()


def assert_close(actual: object, expected: object, tolerance: float = 1e-12) -> None:
    def check(a: jax.Array, b: jax.Array) -> None:
        assert a.dtype == b.dtype
        assert jnp.allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(check, actual, expected)


@pytest.mark.parametrize("name", CHEAPER | OTHERS)
def test_values_and_gradients_are_those_of_xla(name, x64):
    own, xla = case(name)
    first = [jax.jit(jax.value_and_grad(scalar, (1, 2)), static_argnums=0)(*c) for c in (own, xla)]
    assert_close(*first)


@pytest.mark.parametrize("name", CHEAPER)
def test_derivatives_of_every_kind(name, x64):
    def derivatives(f, x, kernel):
        direction = (jnp.cos(x), jnp.cos(kernel))
        forward = jax.jvp(f, (x, kernel), direction)
        gradient = jax.grad(functools.partial(scalar, f), (0, 1))
        second = jax.vjp(gradient, x, kernel)[1](direction)
        images = jax.vmap(lambda image: gradient(image[None], kernel))(x)
        return forward, second, images

    own, xla = case(name)
    assert_close(*(jax.jit(derivatives, static_argnums=0)(*c) for c in (own, xla)))


@pytest.mark.parametrize(
    ("channels", "window", "groups"), [(256, (1, 1), 1), (16, (3, 3), 1), (16, (3, 3), 16)]
)
def test_bfloat16_is_about_as_exact_as_in_xla(channels, window, groups):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (4 * PARTS, 8, 8, channels), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (*window, channels // groups, 16), jnp.bfloat16)
    cotangent = jax.random.normal(keys[2], (4 * PARTS, 8, 8, 16), jnp.bfloat16)

    @functools.partial(jax.jit, static_argnums=0)
    def results(f, x, kernel, cotangent):
        y, pull_back = jax.vjp(
            lambda x, k: f(
                x, k, (1, 1), "SAME", feature_group_count=groups, dimension_numbers=LAYOUT
            ),
            x,
            kernel,
        )
        return y, *pull_back(cotangent)

    given = (x, kernel, cotangent)
    exact = results(jax.lax.conv_general_dilated, *(a.astype("float32") for a in given))
    xla = results(jax.lax.conv_general_dilated, *given)
    for own, other, true in zip(results(convolution, *given), xla, exact, strict=True):
        assert own.dtype == jnp.bfloat16
        errors = [jnp.sqrt(jnp.square(a - true).mean()) for a in (own, other)]
        assert errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("size", [(6,), (5, 6, 7)])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("groups", [1, 8])
def test_one_and_three_axes_are_left_to_xla(size, window, groups):
    def module(convolve):
        windows = (window,) * len(size)
        return nn.Conv(8, windows, feature_group_count=groups, conv_general_dilated=convolve)

    x = jnp.cos(jnp.arange(2 * 8 * math.prod(size))).reshape(2, *size, 8)
    variables = module(None).init(jax.random.key(0), x)
    assert_close(module(convolution).apply(variables, x), module(None).apply(variables, x))


def test_another_layout_is_left_to_xla():
    x, kernel = jnp.cos(jnp.arange(2 * 8 * 5 * 5.0)).reshape(2, 8, 5, 5), jnp.ones((4, 8, 1, 1))
    fixed = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}
    own, xla = (
        f(x, kernel, (1, 1), "VALID", **fixed) for f in (convolution, jax.lax.conv_general_dilated)
    )
    assert_close(own, xla)


def test_a_batch_of_unknown_size():
    def gradient(x, kernel):
        own = functools.partial(convolution, strides=(1, 1), padding="SAME")
        return jax.grad(scalar, 2)(own, x, kernel)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = (batch, 6, 6, 8), (3, 3, 8, 4)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    exported = jax.export.export(jax.jit(gradient), platforms=("cpu", "tpu"))(*arguments)
    x, kernel = (jnp.ones([5, *shape[1:]] if shape[0] is batch else shape) for shape in shapes)
    assert_close(exported.call(x, kernel), gradient(x, kernel), 1e-5)


@pytest.mark.parametrize(("network", "attention"), [("mobilenet_v2", "none"), ("resnet20", "bam")])
def test_networks_use_it(network, attention):
    model = models.create(network, num_classes=2, attention=attention, stem="cifar")
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones(x.shape), train=False)
    )
    text = jax.jit(functools.partial(model.apply, train=False)).lower(variables, x).as_text()
    kernels = re.findall(r"stablehlo.convolution\(.*tensor<(\d+x\d+)x\d+x\d+xf32>\)", text)
    assert "1x1" not in kernels
    assert len(kernels) == (1 if network == "mobilenet_v2" else 19 + 4)


@pytest.mark.parametrize("dilation", ["lhs_dilation", "rhs_dilation"])
@pytest.mark.parametrize("name", ["1x1 strided", "3x3", "depthwise"])
def test_dilation(dilation, name, x64):
    own, xla = (f(x, kernel) for f, x, kernel in case(name, **{dilation: (2, 2)}))
    assert_close(own, xla)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", CHEAPER)
def test_other_platforms_get_the_convolution_itself(name, platform):
    def lowered(f, x, kernel):
        # Named alike: the name of a function stands in its program.
        gradients = jax.jit(lambda x, kernel: jax.grad(scalar, (1, 2))(f, x, kernel))
        return operations(gradients.trace(x, kernel).lower(lowering_platforms=(platform,)))

    own, xla = (lowered(*c) for c in case(name, "float32"))
    assert own["convolution"] == xla["convolution"] > 0
    assert "dot_general" not in own


@pytest.mark.parametrize("name", CHEAPER)
def test_cpus_get_the_cheaper_form(name):
    (own, x, kernel), _ = case(name, "float32")
    gradient = jax.jit(jax.grad(scalar, 2), static_argnums=0).lower(own, x, kernel)
    found = operations(gradient)
    assert ("dot_general" in found) == ("depthwise" not in name)
    # The forward one, where it is XLA's.
    assert found.get("convolution", 0) == (1 if x.shape[-1] == FEW_CHANNELS else 0)


def operations(lowered: jax.stages.Lowered) -> dict[str, int]:
    """How many operations of each kind a program has."""
    words = lowered.as_text().replace("(", " ").split()
    names = [word.removeprefix("stablehlo.") for word in words if word.startswith("stablehlo.")]
    return {name: names.count(name) for name in names}
