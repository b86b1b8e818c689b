"""Convolutions of any kind, and their gradients: sums over windows in NumPy's float64."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from nam_jax.layers.convolution import FEW_CHANNELS, PARTS, convolution
from tests.helpers.bounded import Bounded, growth, rounded, unit
from tests.helpers.hard_arrays import hard_array

pytestmark = pytest.mark.usefixtures("quick_compilation")

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
