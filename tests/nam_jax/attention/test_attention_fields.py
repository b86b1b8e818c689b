"""Names, sizes, fields and calls of every attention module."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nam_jax
from nam_jax.attention import NAMES, attention
from tests.helpers.blocks import MODULES, WITH_NORM, each_mode, each_name, each_norm, image
from tests.helpers.parity import random_variables


def test_names():
    assert set(NAMES) == {"none", *MODULES}
    assert attention("none") is None
    assert all(attention(name) is module for name, module in MODULES.items())
    assert nam_jax.attention is attention or nam_jax.attention.attention is attention


def test_unknown_name_is_refused():
    choices = re.escape(", ".join(NAMES))
    with pytest.raises(ValueError, match=f"no attention 'spam'; choose one of {choices}"):
        attention("spam")


HYPERPARAMETERS = {
    "nam": {"momentum": 0.9, "epsilon": 1e-5, "weight_gradient": False},
    "se": {"reduction": 16},
    "bam": {"reduction": 16, "dilation": 4, "momentum": 0.9, "epsilon": 1e-5},
    "cbam": {"reduction": 16, "kernel_size": 7, "momentum": 0.99, "epsilon": 1e-5},
    "tam": {"kernel_size": 7, "momentum": 0.99, "epsilon": 1e-5},
}
COMMON = ("use_running_average", "dtype", "param_dtype", "axis_name")


@each_name
def test_fields_are_the_common_ones_and_hyperparameters_all_by_keyword(name):
    parameters = inspect.signature(attention(name)).parameters
    own = {k: p.default for k, p in parameters.items() if k not in (*COMMON, "parent", "name")}
    assert own == HYPERPARAMETERS[name.split("_")[0]]
    assert set(COMMON) < set(parameters)
    keyword_only = {k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keyword_only >= {*own, *COMMON}


@each_name
def test_positional_fields_are_refused(name):
    with pytest.raises(TypeError, match="positional"):
        attention(name)(16)


@each_name
def test_calls_are_alike(name):
    parameters = inspect.signature(attention(name).__call__).parameters
    assert list(parameters)[:4] == ["self", "x", "use_running_average", "moments"]


@each_name
@each_mode
def test_running_average_at_construction_or_at_call(name, train):
    call = {"scale": jnp.ones(32)} if name == "nam_tied" else {}
    variables = random_variables(attention(name)(), image(), np.float32, **call)

    def apply(module, *running):
        return jax.jit(lambda v: module.apply(v, image(), *running, mutable="batch_stats", **call))(
            variables
        )

    built = apply(attention(name)(use_running_average=not train))
    called = apply(attention(name)(), not train)
    jax.tree.map(np.testing.assert_array_equal, built, called)
    if name in WITH_NORM:
        assert not np.array_equal(apply(attention(name)(), train)[0], called[0])


@each_norm
def test_running_average_has_to_be_given_once(name):
    for fields, call in (({}, {}), *([({"use_running_average": True},) * 2])):
        with pytest.raises(ValueError, match="use_running_average"):
            jax.eval_shape(
                lambda f=fields, c=call: attention(name)(**f).init(jax.random.key(0), image(), **c)
            )


@pytest.mark.parametrize("name", ["se", "nam_tied"])
def test_running_average_is_not_needed_without_a_norm(name):
    call = {"scale": jnp.ones(32)} if name == "nam_tied" else {}
    attention(name)().init(jax.random.key(0), image(), **call)


@each_name
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_param_dtype_is_that_of_all_parameters(name, dtype):
    module = attention(name)(param_dtype=dtype, use_running_average=True)
    call = {"scale": jnp.ones(32)} if name == "nam_tied" else {}
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), image(), **call))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables.get("params", {}))} <= {
        jnp.dtype(dtype)
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(variables.get("batch_stats", {}))} <= {
        np.dtype(np.float32)
    }


@pytest.mark.parametrize("name", ["cbam", "tam"])
def test_even_kernel_is_refused(name):
    module = attention(name)(kernel_size=4, use_running_average=True)
    with pytest.raises(ValueError, match="kernel_size has to be odd; got 4"):
        module.init(jax.random.key(0), image())


def test_tied_form_without_a_scale_is_refused():
    with pytest.raises(ValueError, match="nam_tied needs scale="):
        attention("nam_tied")().init(jax.random.key(0), image(), use_running_average=True)


# Sizes.


def expected_count(name, channels, height, width, reduction=16, k=7):
    """Parameters by the definitions: weights, biases, and scale and shift of every norm."""
    h = max(1, channels // reduction)
    pixels, norm, plane = height * width, 2, 2 * k * k + 2
    return {
        "nam_channel": norm * channels,
        "nam_spatial": norm * pixels,
        "nam": norm * channels + norm * pixels,
        "nam_tied": 0,
        "se": 2 * channels * h,
        "bam": (2 * channels * h + h + channels + norm * h)
        + (channels * h + h + norm * h)
        + 2 * (9 * h * h + h + norm * h)
        + (h + 1),
        "cbam": 2 * channels * h + h + channels + plane,
        "tam": 3 * plane,
    }[name]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@each_name
@pytest.mark.parametrize("shape", [(2, 5, 3, 64), (1, 1, 1, 32), (2, 2, 7, 8), (1, 3, 3, 40)])
@pytest.mark.parametrize("options", [{}, {"reduction": 4}, {"k": 3}])
def test_parameter_count(name, shape, options):
    fields = {"reduction": options.get("reduction"), "kernel_size": options.get("k")}
    fields = {k: v for k, v in fields.items() if v and k in attention(name).__dataclass_fields__}
    call = {"scale": jnp.ones(shape[-1])} if name == "nam_tied" else {}
    module = attention(name)(**fields)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.ones(shape), True, **call)
    )
    _, *rest = shape
    expected = expected_count(name, rest[2], rest[0], rest[1], **options)
    assert count(variables.get("params", {})) == expected
    for collection in variables.values():
        assert {leaf.dtype for leaf in jax.tree.leaves(collection)} == {np.dtype(np.float32)}
