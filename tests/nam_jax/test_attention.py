"""What every attention module has to do, by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from nam_jax import NAM, ChannelNAM, SpatialNAM
from nam_jax.attention import NAMES, TiedNAM, attention

each_name = pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
X = np.random.default_rng(0).standard_normal((2, 8, 6, 32)).astype(np.float32)
OPTIONS = {"momentum": 0.9, "epsilon": 1e-5, "axis_name": None}


def build(name, **options):
    """The module's init and apply, for a network that knows nothing but its name."""
    module = attention(name)(**OPTIONS, **options)
    call = {"scale": jnp.linspace(-1, 1, 32)} if name == "nam_tied" else {"moments": None}
    variables = module.init(jax.random.key(0), X, use_running_average=False, **call)

    def apply(variables, x, train=True):
        return module.apply(
            variables, x, use_running_average=not train, mutable="batch_stats", **call
        )

    return variables, apply


@each_name
@pytest.mark.parametrize("train", [False, True])
def test_shape_and_dtype_are_kept(name, train):
    variables, apply = build(name)
    y, _ = apply(variables, X, train)
    assert y.shape == X.shape
    assert y.dtype == X.dtype
    assert np.abs(y - X).max() > 0.1  # it does something


@each_name
def test_jit_changes_nothing(name):
    variables, apply = build(name)
    expected = apply(variables, X)
    actual = jax.jit(apply)(variables, X)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), actual, expected)


@each_name
def test_gradients_are_finite(name):
    variables, apply = build(name)
    params, statistics = variables.get("params", {}), variables.get("batch_stats", {})

    def loss(params, x):
        y, _ = apply({"params": params, "batch_stats": statistics}, x)
        return jnp.square(y).sum()

    grads, dx = jax.grad(loss, argnums=(0, 1))(params, X)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, dx)))
    assert np.abs(dx).max() > 0
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@each_name
def test_bfloat16_in_bfloat16_out(name):
    variables, apply = build(name, dtype=jnp.bfloat16)
    y, _ = apply(variables, jnp.asarray(X, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


@each_name
def test_serialisation_brings_everything_back(name):
    variables, apply = build(name)
    _, update = apply(variables, X)
    trained = {**variables, **update}
    restored = serialization.from_bytes(variables, serialization.to_bytes(trained))
    assert jax.tree.structure(restored) == jax.tree.structure(trained)
    jax.tree.map(np.testing.assert_array_equal, restored, trained)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("nam_channel", ChannelNAM),
        ("nam_spatial", SpatialNAM),
        ("nam", NAM),
        ("nam_tied", TiedNAM),
        ("none", None),
    ],
)
def test_names(name, module):
    assert name in NAMES
    assert attention(name) is module


def test_tied_form_without_a_scale_is_refused():
    with pytest.raises(ValueError, match="nam_tied needs scale="):
        attention("nam_tied")().init(jax.random.key(0), X, use_running_average=True)


def test_unknown_name_is_refused():
    choices = re.escape(", ".join(NAMES))
    with pytest.raises(ValueError, match=f"no attention 'spam'; choose one of {choices}"):
        attention("spam")
