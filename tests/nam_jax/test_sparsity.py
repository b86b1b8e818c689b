"""Equation 4: the penalty, its gradient in an optax chain, and the proximal step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import FrozenDict
from hypothesis import given
from hypothesis import strategies as st

import nam_jax
from nam_jax import NAM, ChannelNAM, SpatialNAM
from nam_jax.sparsity import nam_scales
from tests.helpers.arrays import assert_close, growth, hard_arrays, unit
from tests.helpers.networks import random_variables
from tests.helpers.values import with_slow

RATE = 0.1


def proximal(strength):
    return nam_jax.proximal_sparsity(strength, RATE)


each_transformation = pytest.mark.parametrize(
    "transformation", [nam_jax.add_sparsity_penalty, proximal], ids=["add", "proximal"]
)


def scales(*values):
    return {"nam_bn": {"scale": np.array(values, np.float32)}}


def resnet_params(attention, dtype=np.float32):
    model = nam_jax.models.create("resnet20", num_classes=10, attention=attention, stem="cifar")
    return random_variables(model, np.zeros((1, 16, 16, 3), np.float32), dtype)["params"]


def run(tx, params, gradient, steps):
    """Parameters after some steps of a transformation."""
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_penalty_counts_nam_scales_and_nothing_else():
    affine = {"scale": np.array([1.0, -2.0]), "bias": np.array([100.0, 100.0])}
    pixels = {"scale": np.array([[-4.0, 8.0]]), "bias": np.array([[100.0, 100.0]])}
    params = {
        "bn1": affine,
        "nam_bn": affine,
        "block": {"attention": {"channel": {"nam_bn": affine}, "spatial": {"nam_bn": pixels}}},
        "own_nam_bn": affine,
        "scale": {"nam_bn": np.array([100.0])},
    }
    np.testing.assert_allclose(nam_jax.sparsity_penalty(params, 0.5), 0.5 * (3 + 3 + 12))
    assert nam_jax.sparsity_penalty({"bn1": affine}, 0.5) == 0


def test_penalty_sums_bfloat16_scales_in_float32():
    params = {"nam_bn": {"scale": jnp.ones(1001, jnp.bfloat16)}}
    penalty = nam_jax.sparsity_penalty(params, 1.0)
    assert penalty.dtype == jnp.float32
    assert penalty == 1001  # which bfloat16, of eight bits, does not have


@pytest.mark.parametrize("attention", ["nam", "nam_tied"])
def test_update_adds_the_gradient_of_the_penalty(attention):
    params = resnet_params(attention)
    tx = nam_jax.add_sparsity_penalty(0.25)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    penalty_gradient = jax.jit(jax.grad(nam_jax.sparsity_penalty))(params, 0.25)
    assert np.abs(jax.tree.leaves(nam_scales(penalty_gradient))[0]).max() == 0.25
    # Everywhere else that gradient is 0: the other leaves come back as they were.
    expected = jax.tree.map(lambda g, p: g + p, params, penalty_gradient)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_tied_scales_are_those_of_every_last_norm():
    params = resnet_params("nam_tied")
    blocks = [f"layer{stage}_{block}" for stage in (1, 2, 3) for block in range(3)]
    expected = sum(np.abs(params[block]["nam_bn"]["scale"]).sum() for block in blocks)
    np.testing.assert_allclose(nam_jax.sparsity_penalty(params, 0.5), 0.5 * expected, rtol=1e-6)


def test_chain_is_sgd_on_the_loss_with_the_penalty(x64):
    params = {"nam_bn": {"scale": np.array([0.5, -1.0, 0.003])}, "kernel": np.array([1.0, 2, 3])}

    def loss(params):
        return ((params["nam_bn"]["scale"] * params["kernel"] - 0.2) ** 2).sum()

    def penalised(params):
        return loss(params) + nam_jax.sparsity_penalty(params, 0.03)

    sgd = optax.chain(optax.add_decayed_weights(0.01), optax.trace(0.9), optax.scale(-0.1))
    chain = optax.chain(nam_jax.add_sparsity_penalty(0.03), sgd)
    actual = run(chain, params, jax.grad(loss), 6)
    assert_close(actual, run(sgd, params, jax.grad(penalised), 6))


def test_strength_may_be_a_schedule_of_the_updates():
    params = scales(2.0, -3.0)
    tx = nam_jax.add_sparsity_penalty(lambda count: 0.5 * count)
    state = tx.init(params)
    for count in range(4):
        updates, state = tx.update(scales(0.0, 0.0), state, params)
        np.testing.assert_array_equal(updates["nam_bn"]["scale"], [0.5 * count, -0.5 * count])


def test_update_keeps_the_dtype_of_the_gradient():
    tx = nam_jax.add_sparsity_penalty(optax.constant_schedule(0.5))
    gradient = {"nam_bn": {"scale": jnp.zeros(1, jnp.bfloat16)}}
    updates, _ = tx.update(gradient, tx.init(scales(2.0)), scales(2.0))
    assert updates["nam_bn"]["scale"].dtype == jnp.bfloat16


@pytest.mark.faults
@each_transformation
@pytest.mark.parametrize(
    "strength", [-1e-4, float("nan"), np.float32(-1), np.int64(-1), np.float16("nan")]
)
def test_negative_strength_is_refused(transformation, strength):
    with pytest.raises(ValueError, match=f"has to be at least 0; got {strength}"):
        transformation(strength)


@each_transformation
@pytest.mark.parametrize("strength", [0.1, lambda count: 0.0], ids=["constant", "schedule"])
def test_penalty_of_nothing_is_refused(transformation, strength):
    with pytest.raises(ValueError, match="nam_bn/scale"):
        transformation(strength).init({"bn1": {"scale": np.ones(2)}})


@each_transformation
def test_strength_zero_asks_for_no_scales(transformation):
    params = {"bn1": {"scale": np.ones(2, np.float32)}}
    tx = transformation(0.0)
    updates, _ = tx.update(params, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, params)


@each_transformation
def test_update_needs_params(transformation):
    tx = transformation(0.1)
    state = tx.init(scales(1.0))
    with pytest.raises(ValueError, match="params"):
        tx.update(scales(1.0), state)


@each_transformation
def test_transformations_run_under_jit(transformation):
    params = {**scales(1.0, -0.004, 0.0), "bias": np.ones(3, np.float32)}
    tx = transformation(0.1)
    expected, _ = tx.update(params, tx.init(params), params)
    actual, _ = jax.jit(tx.update)(params, tx.init(params), params)
    assert_close(actual, expected, 1e-6)


def soft_threshold(v, threshold):
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def test_proximal_step_is_the_soft_threshold(x64):
    params = {"nam_bn": {"scale": np.array([1.0, -1.0, 0.01, -0.01])}, "kernel": np.ones(2)}
    update = {"nam_bn": {"scale": np.array([0.5, 0.3, -0.02, 0.1])}, "kernel": np.ones(2)}
    tx = nam_jax.proximal_sparsity(0.2, 0.25)
    updates, _ = tx.update(update, tx.init(params), params)
    actual = optax.apply_updates(params, updates)
    v = params["nam_bn"]["scale"] + update["nam_bn"]["scale"]
    assert_close(actual["nam_bn"]["scale"], soft_threshold(v, 0.05))
    np.testing.assert_array_equal(actual["kernel"], [2, 2])


@pytest.mark.parametrize("strength", [0.5, lambda count: 0.1 * (count + 1)])
@pytest.mark.parametrize("learning_rate", [0.5, lambda count: 0.3 / (count + 1) ** 2])
def test_proximal_step_follows_schedules(x64, strength, learning_rate):
    params = {"nam_bn": {"scale": np.array([2.0, -1.5, 0.07])}}
    tx = nam_jax.proximal_sparsity(strength, learning_rate)
    expected = params["nam_bn"]["scale"]
    state = tx.init(params)
    for count in range(4):
        updates, state = tx.update(jax.tree.map(np.zeros_like, params), state, params)
        params = optax.apply_updates(params, updates)
        p, rate = (s(count) if callable(s) else s for s in (strength, learning_rate))
        expected = soft_threshold(expected, p * rate)
        assert_close(params["nam_bn"]["scale"], expected)


def test_only_the_proximal_step_reaches_zero():
    # Minimise ½ (scale − target)² + p |scale|: the minimum is the soft threshold of target.
    target = np.array([1.0, 0.05, -0.05], np.float32)

    def gradient(params):
        return {"nam_bn": {"scale": params["nam_bn"]["scale"] - target}}

    sign = optax.chain(nam_jax.add_sparsity_penalty(0.2), optax.sgd(0.1))
    proximal = optax.chain(optax.sgd(0.1), nam_jax.proximal_sparsity(0.2, 0.1))
    (signed,), (exact,) = (
        jax.tree.leaves(run(tx, scales(1.0, 1.0, -1.0), gradient, 100)) for tx in (sign, proximal)
    )
    np.testing.assert_allclose(exact, [0.8, 0, 0], rtol=1e-4)
    np.testing.assert_array_equal(exact == 0, [False, True, True])
    assert (signed != 0).all()
    assert np.abs(signed[1:]).max() < 0.05  # it hovers around zero


class Toy(nn.Module):
    """A convolution, NAM and a readout."""

    attention: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(5, (3, 3))(x)
        return nn.Dense(1)(self.attention(use_running_average=False, name="attention")(x))


@functools.cache
def toy_problem(attention):
    """Parameters with some scales at zero, and the gradient of a loss."""
    x = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32)
    model = Toy(attention)

    def loss(params):
        y, _ = model.apply({"params": params}, x, mutable="batch_stats")
        return ((y - x[..., :1]) ** 2).mean()

    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.at[..., 1].set(0) if path[-1].key == "scale" else leaf,
        jax.jit(model.init)(jax.random.key(0), x)["params"],
    )
    return params, jax.jit(jax.grad(loss))


SGD = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.9))


@with_slow("attention", [ChannelNAM, SpatialNAM, NAM], (ChannelNAM, SpatialNAM))
@pytest.mark.parametrize(
    "tx",
    [
        SGD,
        optax.chain(nam_jax.add_sparsity_penalty(1e-2), SGD),
        optax.chain(SGD, nam_jax.proximal_sparsity(1e-2, 0.1)),
    ],
    ids=["sgd", "add", "proximal"],
)
def test_zero_scales_stay_zero_in_training(attention, tx):
    params, gradient = toy_problem(attention)
    trained = run(tx, params, gradient, 5)
    for leaf in nam_scales(trained) + nam_scales(gradient(trained)):
        np.testing.assert_array_equal(leaf[..., 1], np.zeros_like(leaf[..., 1]))
        assert (leaf[..., 0] != 0).all()  # while the others train


def test_gradient_of_the_penalty_is_the_update_also_at_zero():
    params = {"nam_bn": {"scale": jnp.array([1.0, -2.0, 0.0, -0.0])}}
    tx = nam_jax.add_sparsity_penalty(0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    gradient = jax.grad(nam_jax.sparsity_penalty)(params, 0.5)
    np.testing.assert_array_equal(updates["nam_bn"]["scale"], gradient["nam_bn"]["scale"])
    np.testing.assert_array_equal(gradient["nam_bn"]["scale"], [0.5, -0.5, 0.0, 0.0])


def test_strength_may_be_injected_as_a_hyperparameter():
    params = {"nam_bn": {"scale": jnp.array([1.0, -2.0])}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for make, expected in (
        (nam_jax.add_sparsity_penalty, 0.25),
        (nam_jax.proximal_sparsity, -0.025),
    ):
        rate = {"learning_rate": 0.1} if make is nam_jax.proximal_sparsity else {}
        tx = optax.inject_hyperparams(make)(strength=0.5, **rate)
        state = tx.init(params)
        state.hyperparams["strength"] = jnp.array(0.25)
        updates, _ = jax.jit(tx.update)(zeros, state, params)
        np.testing.assert_allclose(updates["nam_bn"]["scale"], [expected, -expected], rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [lambda: nam_jax.proximal_sparsity(0.1, -1.0), lambda: nam_jax.sparsity_penalty({}, -1.0)],
)
def test_negative_numbers_are_refused(call):
    with pytest.raises(ValueError, match=r"has to be at least 0; got -1\.0"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: nam_jax.sparsity_penalty({}, 0.1, scales="*"),
        lambda: nam_jax.add_sparsity_penalty(0.1, scales="*"),
        lambda: nam_jax.proximal_sparsity(0.1, RATE, scales="*"),
    ],
)
def test_scales_that_are_no_regular_expression_are_refused(call):
    with pytest.raises(ValueError, match=r"scales='\*' is no regular expression"):
        call()


# In random trees of parameters, and both transformations by definition.

# Of the updates and of the scales.
each_dtypes = pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float16", "float16"),
        ("float32", "bfloat16"),
        ("bfloat16", "float32"),
    ],
    ids="-".join,
)
KINDS = ["normal", "zeros", "negative", "some zeros", "one spike", "tiny"]
strengths = st.sampled_from([1e-8, 1e-4, 0.3, 2.0])


class Pair(NamedTuple):
    """A container with names, and no dictionary."""

    nam_bn: Any
    scale: Any


arrays = hard_arrays((3,), "float32", KINDS)
leaves = arrays | arrays.map(lambda array: nn.Partitioned(array, (None,)))
norms = st.fixed_dictionaries({"nam_bn": st.fixed_dictionaries({"scale": leaves, "bias": leaves})})
names = st.sampled_from(["nam_bn", "scale", "bn", "bias", "channel", "own_nam_bn", "value"])
trees = st.recursive(
    leaves | norms,
    lambda inner: (
        st.dictionaries(names, inner, max_size=4)
        | st.dictionaries(names, inner, max_size=4).map(FrozenDict)
        | st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=20,
)


def with_paths(tree, path=()):
    """Every array with its path, found without JAX."""
    if isinstance(tree, np.ndarray):
        return {path: tree}
    if isinstance(tree, nn.Partitioned):
        return with_paths(tree.value, path)
    if isinstance(tree, Pair):
        tree = tree._asdict()
    items = tree.items() if hasattr(tree, "items") else enumerate(tree)
    return {
        p: leaf for name, inner in items for p, leaf in with_paths(inner, (*path, name)).items()
    }


def is_scale(path):
    return path[-2:] == ("nam_bn", "scale")


def update(transformation, strength, updates, params):
    tx = transformation(strength)
    updates, params = jax.tree.map(jnp.asarray, (updates, params))
    return jax.device_get(tx.update(updates, tx.init(params), params)[0])


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.faults
@given(tree=trees, strength=strengths)
def test_penalty_is_that_of_the_scales_in_any_tree(tree, strength):
    scales = [leaf for path, leaf in with_paths(tree).items() if is_scale(path)]
    expected = strength * np.abs(np.float64(scales)).sum()
    tolerance = growth(3 * len(scales) + 2, unit("float32")) * expected
    assert abs(nam_jax.sparsity_penalty(tree, strength) - expected) <= tolerance
    gradient = with_paths(jax.device_get(jax.grad(nam_jax.sparsity_penalty)(tree, strength)))
    for path, leaf in with_paths(tree).items():
        expected = np.float32(strength) * np.sign(leaf) if is_scale(path) else np.zeros(3)
        np.testing.assert_array_equal(gradient[path], expected)


@pytest.mark.faults
@each_transformation
@given(tree=trees, strength=strengths)
def test_transformations_find_the_scales_in_any_tree_and_nothing_else(
    transformation, tree, strength
):
    updates = jax.tree.map(np.cos, tree)
    if with_paths(tree) and not any(map(is_scale, with_paths(tree))):
        with pytest.raises(ValueError, match="no parameter path ends in"):
            update(transformation, strength, updates, tree)
        return
    actual = with_paths(update(transformation, strength, updates, tree))
    for path, before in with_paths(updates).items():
        if is_scale(path):
            scale = with_paths(tree)[path]
            alone = update(
                transformation, strength, *({"nam_bn": {"scale": a}} for a in (before, scale))
            )
            assert_same_bits(actual[path], alone["nam_bn"]["scale"])
        else:
            assert_same_bits(actual[path], before)


@pytest.mark.faults
@each_transformation
@each_dtypes
@given(data=st.data(), off=st.sampled_from([0.0, lambda _: 0.0, lambda _: jnp.zeros(())]))
def test_no_penalty_changes_not_a_bit(transformation, dtypes, data, off):
    # Of a scale's update only its width may: it is that of the wider of the two.
    u, scale = (data.draw(hard_arrays((5,), dtype)) for dtype in dtypes)
    params, updates = ({"nam_bn": {"scale": leaf}, "kernel": u} for leaf in (scale, u))
    actual = update(transformation, off, updates, params)
    assert_same_bits(actual["nam_bn"]["scale"], u.astype(actual["nam_bn"]["scale"].dtype))
    assert_same_bits(actual["kernel"], u)


def drawn_step(transformation, data, dtypes, strength):
    u, scale = (data.draw(hard_arrays((5,), dtype, KINDS)) for dtype in dtypes)
    after = update(transformation, strength, *({"nam_bn": {"scale": a}} for a in (u, scale)))
    return np.float64(u), np.float64(scale), after["nam_bn"]["scale"]


@pytest.mark.faults
@each_dtypes
@given(data=st.data(), strength=strengths)
def test_penalty_adds_its_subgradient(dtypes, data, strength):
    u, scale, after = drawn_step(nam_jax.add_sparsity_penalty, data, dtypes, strength)
    assert after.dtype == dtypes[0]
    expected = u + strength * np.sign(scale)
    # Two operations in float32, and a rounding to the dtype of the update.
    error = growth(2, unit("float32")) * (np.abs(u) + strength) + unit(after.dtype) * np.abs(
        expected
    )
    smallest = float(jnp.finfo(after.dtype).tiny)
    assert (np.abs(np.float64(after) - expected) <= error + smallest).all()


@pytest.mark.faults
@each_dtypes
@given(data=st.data(), strength=strengths)
def test_proximal_step_is_the_minimum(dtypes, data, strength):
    u, scale, after = drawn_step(proximal, data, dtypes, strength)
    # Of ½ (s − v)² + t |s|, where v − s is in t ∂|s|.
    v, s, t = scale + u, scale + np.float64(after), strength * RATE
    sizes = np.abs(scale) + np.abs(u) + t
    # Rounded: v, t twice, their difference and the update.
    error = growth(5, unit(after.dtype)) * sizes + float(jnp.finfo(after.dtype).tiny)
    assert (np.abs(v - s) <= t + error).all()
    moved = np.abs(s) > error
    assert (np.abs(v - s - t * np.sign(s)) <= error)[moved].all()
    # A threshold that is above makes it 0, not something near.
    assert (s == 0)[np.abs(v) < t - error].all()
