"""Convolutions in other terms: the values and gradients of XLA's own, and only on CPUs."""

import functools
import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from nam_jax import models
from nam_jax.layers.convolution import FEW_CHANNELS, PARTS, convolution
from tests.helpers.arrays import Bounded, growth, hard_array, rounded, unit
from tests.helpers.values import with_slow

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
# One of each way to compute it.
QUICK = ("1x1 strided", "3x3")

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


@with_slow("name", CHEAPER, set(CHEAPER) - {*QUICK, "depthwise"})
def test_values_and_gradients_are_those_of_xla(name, x64):
    own, xla = case(name)
    first = [jax.jit(jax.value_and_grad(scalar, (1, 2)), static_argnums=0)(*c) for c in (own, xla)]
    assert_close(*first)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_xlas_own(name, x64):
    def program(f, x, kernel):
        gradients = jax.jit(lambda x, kernel: jax.value_and_grad(scalar, (1, 2))(f, x, kernel))
        return gradients.lower(x, kernel).as_text()

    own, xla = case(name)
    assert program(*own) == program(*xla)


@with_slow("name", CHEAPER, set(CHEAPER) - set(QUICK))
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "window", "groups"), [(256, (1, 1), 1), (16, (3, 3), 1), (16, (3, 3), 16)]
)
def test_bfloat16_is_about_as_exact_as_in_xla(channels, window, groups):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (4 * PARTS, 4, 4, channels), jnp.bfloat16)
    kernel = jax.random.normal(keys[1], (*window, channels // groups, 16), jnp.bfloat16)
    cotangent = jax.random.normal(keys[2], (4 * PARTS, 4, 4, 16), jnp.bfloat16)

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


@pytest.mark.parametrize(
    ("size", "window", "groups"), [((6,), 3, 1), ((6,), 1, 8), ((5, 6, 7), 1, 1), ((5, 6, 7), 3, 8)]
)
def test_one_and_three_axes_are_left_to_xla(size, window, groups):
    def module(convolve):
        windows = (window,) * len(size)
        return nn.Conv(8, windows, feature_group_count=groups, conv_general_dilated=convolve)

    x = jnp.cos(jnp.arange(2 * 8 * math.prod(size))).reshape(2, *size, 8)
    variables = module(None).init(jax.random.key(0), x)
    assert_close(module(convolution).apply(variables, x), module(None).apply(variables, x))


def test_nnx_takes_it():
    x = jnp.cos(jnp.arange(2 * 4 * 4 * 8.0)).reshape(2, 4, 4, 8)
    own, xla = (
        nnx.Conv(8, 3, (3, 3), rngs=nnx.Rngs(0), **fields)(x)
        for fields in ({"conv_general_dilated": convolution}, {})
    )
    assert_close(own, xla)


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
    x, kernel = (
        jnp.sin(jnp.arange(math.prod(shape)) * 1.0).reshape(shape)
        for shape in ((5, *shapes[0][1:]), shapes[1])
    )
    assert_close(exported.call(x, kernel), jax.jit(gradient)(x, kernel), 1e-5)


@pytest.mark.parametrize(
    ("kernel_shape", "groups", "strides", "padding"),
    [
        ((1, 1, 8, 4), 1, (2, 2), "SAME"),
        ((3, 3, 1, 8), 8, (2, 2), ((1, 1), (1, 1))),
        ((3, 3, 1, 8), 8, (1, 1), "VALID"),
        ((3, 3, 8, 24), 1, (1, 1), "SAME"),
    ],
)
def test_maps_of_unknown_size(kernel_shape, groups, strides, padding):
    kernel = jnp.cos(jnp.arange(math.prod(kernel_shape)) * 1.0).reshape(kernel_shape)

    @jax.jit
    def own(x):
        return convolution(x, kernel, strides, padding, feature_group_count=groups)

    shape = jax.export.symbolic_shape("n, h, w, 8")
    exported = jax.export.export(own)(jax.ShapeDtypeStruct(shape, jnp.float32))
    for size in ((2, 7, 6, 8), (1, 4, 5, 8)):
        x = jnp.sin(jnp.arange(math.prod(size)) * 1.0).reshape(size)
        assert_close(exported.call(x), own(x), 1e-5)


@pytest.mark.parametrize(
    ("network", "attention"),
    [pytest.param("mobilenet_v2", "none", marks=pytest.mark.slow), ("resnet20", "bam")],
)
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
    for value in ((2, 2), None):
        own, xla = (f(x, kernel) for f, x, kernel in case(name, **{dilation: value}))
        assert_close(own, xla)


@with_slow("name", CHEAPER, set(CHEAPER) - {*QUICK, "depthwise"})
def test_other_platforms_get_the_convolution_itself(name):
    def traced(f, x, kernel):
        # Named alike: the name of a function stands in its program.
        return jax.jit(lambda x, kernel: jax.grad(scalar, (1, 2))(f, x, kernel)).trace(x, kernel)

    programs = [traced(*c) for c in case(name, "float32")]
    for platform in ("cuda", "tpu"):
        own, xla = (operations(p.lower(lowering_platforms=(platform,))) for p in programs)
        assert own["convolution"] == xla["convolution"] > 0
        assert "dot_general" not in own


@pytest.mark.parametrize("name", CHEAPER)
def test_cpus_get_the_cheaper_form(name):
    (own, x, kernel), _ = case(name, "float32")
    gradient = jax.jit(jax.grad(scalar, 2), static_argnums=0).lower(own, x, kernel)
    counts = operations(gradient)
    assert ("dot_general" in counts) == ("depthwise" not in name)
    # The forward one, where it is XLA's.
    assert counts.get("convolution", 0) == (1 if x.shape[-1] == FEW_CHANNELS else 0)


def operations(lowered: jax.stages.Lowered) -> dict[str, int]:
    """How many operations of each kind a program has."""
    words = lowered.as_text().replace("(", " ").split()
    names = [word.removeprefix("stablehlo.") for word in words if word.startswith("stablehlo.")]
    return {name: names.count(name) for name in names}


# Convolutions of any kind, and their gradients: sums over windows in NumPy's float64.

SIZE = (9, 6)
ANY = {
    "images": [1, 3, PARTS],
    "channels": [1, 4, FEW_CHANNELS],
    "groups": ["one", "two", "all"],
    "features": [1, 3],  # of every group
    "window": [(1, 1), (3, 3), (5, 3), (1, 3)],
    "strides": [(1, 1), (2, 1), (2, 3)],
    "padding": ["SAME", "VALID", ((1, 1), (0, 2)), ((1, 1), (1, 1))],
    "dilation": [(1, 1), (2, 1)],
}
# What the library writes in other terms is met by few of any.
POINTWISE = ANY | {"groups": ["one"], "window": [(1, 1)], "padding": ["SAME", "VALID"]}
DEPTHWISE = ANY | {"groups": ["all"], "features": [1], "dilation": [(1, 1)]}
SAME_SIZE = ANY | {
    "channels": [FEW_CHANNELS],
    "groups": ["one"],
    "strides": [(1, 1)],
    "padding": ["SAME"],
    "dilation": [(1, 1)],
}
KINDS = ["normal", "negative", "huge", "one spike"]


def drawn(rng):
    """The arguments of a convolution; all choices are equally likely."""

    def one_of(few):
        return few[rng.integers(len(few))]

    case = {
        name: one_of(few) for name, few in one_of([ANY, POINTWISE, DEPTHWISE, SAME_SIZE]).items()
    }
    channels, dtype = case["channels"], one_of(["float32", "bfloat16", "float16"])
    groups = {"one": 1, "two": min(2, channels), "all": channels}[case["groups"]]
    shapes = (
        (case["images"], *SIZE, channels),
        (*case["window"], channels // groups, case["features"] * groups),
    )
    # What is large in float16 has products that overflow.
    kinds = KINDS[:2] if dtype == "float16" else KINDS
    arrays = (hard_array(rng, one_of(kinds), shape, dtype) for shape in shapes)
    return *arrays, case["strides"], case["padding"], case["dilation"], groups


class Direct:
    """A convolution and its gradients, term by term."""

    def __init__(self, x, kernel, strides, padding, dilation, groups):
        extent = [d * (n - 1) + 1 for n, d in zip(kernel.shape, dilation, strict=False)]
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(x.shape[1:3], extent, strides, padding)
        padded = np.pad(x, ((0, 0), *padding, (0, 0)))
        padded = padded.reshape(*padded.shape[:3], groups, -1)
        steps = (slice(None), *(slice(None, None, s) for s in strides))
        taps = (..., *(slice(None, None, d) for d in dilation))

        def met(values):
            """By n, y, x, group, channel, i, j: what the tap (i, j) of the kernel meets."""
            return sliding_window_view(values, extent, (1, 2))[steps][taps]

        self.x, self.places = met(padded), met(np.arange(padded.size).reshape(padded.shape))
        self.kernel = kernel.reshape(*kernel.shape[:3], groups, -1)
        inside = np.pad(np.ones(x.shape, bool), ((0, 0), *padding, (0, 0)))
        self.shapes, self.inside = (x.shape, kernel.shape), inside

    def output(self):
        y = np.einsum("nyxgcij,ijcgf->nyxgf", self.x, self.kernel)
        return y.reshape(*y.shape[:3], -1)

    def gradient_of_x(self, cotangent):
        of_met = np.einsum("nyxgf,ijcgf->nyxgcij", self.by_group(cotangent), self.kernel)
        of_padded = np.bincount(self.places.ravel(), of_met.ravel(), self.inside.size)
        return of_padded.reshape(self.inside.shape)[self.inside].reshape(self.shapes[0])

    def gradients_of_kernel(self, cotangent):
        """One by every image."""
        of_kernel = np.einsum("nyxgcij,nyxgf->nijcgf", self.x, self.by_group(cotangent))
        return of_kernel.reshape(-1, *self.shapes[1])

    def by_group(self, cotangent):
        return cotangent.reshape(*cotangent.shape[:3], self.kernel.shape[3], -1)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def output_and_gradients(x, kernel, strides, padding, dilation, groups, cotangent):
    def f(x, kernel):
        return convolution(
            x, kernel, strides, padding, rhs_dilation=dilation, feature_group_count=groups
        )

    y, pull = jax.vjp(f, x, kernel)
    return y, *pull(cotangent)


@pytest.mark.slow
@pytest.mark.faults
@given(seed=st.integers(0, 2**32 - 1))
def test_convolution_is_a_sum_over_windows(seed):
    rng = np.random.default_rng(seed)
    x, kernel, *rest = drawn(rng)
    exact = Direct(np.float64(x), np.float64(kernel), *rest)
    sizes = Direct(np.abs(np.float64(x)), np.abs(np.float64(kernel)), *rest)
    y = exact.output()
    cotangent = hard_array(rng, "normal", y.shape, x.dtype)
    actual = output_and_gradients(x, kernel, *rest, cotangent)

    def check(got, value, size, count, error=0):
        # Products, in any order, summed in float32 or wider; the sum is rounded once.
        assert (got.shape, got.dtype) == (value.shape, x.dtype)
        in_float32 = Bounded(value, growth(count + 2, unit("float32")) * size + error)
        assert rounded(in_float32, unit(x.dtype)).contains(got)

    wide, wide_size = np.float64(cotangent), np.abs(np.float64(cotangent))
    check(actual[0], y, sizes.output(), kernel[..., 0].size)
    of_x = (value.gradient_of_x(c) for value, c in ((exact, wide), (sizes, wide_size)))
    check(actual[1], *of_x, kernel[:, :, 0].size)
    by_image = exact.gradients_of_kernel(wide)
    size = sizes.gradients_of_kernel(wide_size).sum(0)
    # A batch may be divided, and the sum of each part rounded.
    of_parts = unit(x.dtype) * np.abs(by_image).sum(0)
    check(actual[2], by_image.sum(0), size, y[..., 0].size, of_parts)
