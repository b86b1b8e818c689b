"""The learning-rate schedule, and the optax chain against NumPy in float64."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.values import with_slow
from train.core.config.fields import default_config
from train.core.engine import optimizer
from train.core.engine.optimizer.updates import OPTIMIZERS, kernels

PEAK = 0.1


def optimizer_config(**fields):
    return dataclasses.replace(default_config().optimizer, learning_rate=PEAK, **fields)


def rates(total_steps, warmup_steps=0, **fields):
    """The learning rate of every update of a run."""
    schedule = optimizer.schedule(optimizer_config(**fields), total_steps, warmup_steps)
    return np.broadcast_to(jax.jit(schedule)(jnp.arange(total_steps)), total_steps)


@pytest.mark.parametrize("warmup_steps", [0, 390])
def test_step_schedule_drops_at_the_epochs_of_the_reference(warmup_steps):
    steps = 390  # of an epoch: 50,000 images in batches of 128
    found = rates(200 * steps, warmup_steps)
    epochs = np.arange(200 * steps) // steps
    expected = PEAK * 0.2 ** ((epochs >= 60) * 1 + (epochs >= 120) + (epochs >= 160))
    np.testing.assert_allclose(found[warmup_steps:], expected[warmup_steps:], rtol=1e-6)


def test_milestones_that_round_to_the_same_step_both_count():
    found = rates(10, milestones=(0.48, 0.5, 0.52), decay_factor=0.5)
    np.testing.assert_allclose(found, PEAK * np.array([1] * 5 + [0.125] * 5), rtol=1e-6)


def test_step_schedule_without_milestones_is_constant():
    np.testing.assert_allclose(rates(10, milestones=()), PEAK, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_cosine_schedule_falls_to_zero_at_the_end(warmup_steps):
    steps = 100 + warmup_steps
    schedule = optimizer.schedule(optimizer_config(schedule="cosine"), steps, warmup_steps)
    start, middle, last, end = (
        float(schedule(jnp.asarray(warmup_steps + step))) for step in (0, 50, 99, 100)
    )
    np.testing.assert_allclose([start, middle], [PEAK, PEAK / 2], rtol=1e-6)
    np.testing.assert_allclose(last, PEAK * (1 + np.cos(0.99 * np.pi)) / 2, rtol=1e-4)
    assert abs(end) < 1e-8


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_constant_schedule_stays_at_the_peak(warmup_steps):
    found = rates(20, warmup_steps, schedule="constant")
    np.testing.assert_allclose(found[warmup_steps:], PEAK, rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_exponential_schedule_drops_after_every_epoch(warmup_steps):
    config = optimizer_config(schedule="exponential", decay_factor=0.98)
    schedule = optimizer.schedule(config, 100, warmup_steps, steps_per_epoch=7)
    steps = np.arange(96)
    expected = PEAK * 0.98 ** (steps // 7)
    np.testing.assert_allclose(schedule(jnp.asarray(steps + warmup_steps)), expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["step", "cosine", "exponential", "constant"])
@pytest.mark.parametrize("warmup_steps", [1, 4])
def test_warm_up_grows_evenly_to_the_peak(schedule, warmup_steps):
    found = rates(100, warmup_steps, schedule=schedule, decay_factor=0.5)
    expected = PEAK * np.arange(1, warmup_steps + 2) / (warmup_steps + 1)
    np.testing.assert_allclose(found[: warmup_steps + 1], expected, rtol=1e-6)
    assert found.argmax() == warmup_steps


def parameters():
    """One leaf of every kind, in float64."""
    generator = np.random.default_rng(0)
    return {
        "conv": {"kernel": generator.normal(size=(3, 2))},
        "bn": {"scale": generator.normal(size=2), "bias": generator.normal(size=2)},
        "attention": {"nam_bn": {"scale": generator.normal(size=4), "bias": np.ones(4)}},
        "head": {"kernel": generator.normal(size=(2, 5)), "bias": generator.normal(size=5)},
    }


def gradient(params):
    """Of some loss with minima, for both implementations."""
    return jax.tree.map(lambda p: p**3 - p, params)


def rate(step):
    return 0.05 / (1 + step)


def by_optax(config, steps):
    tx, params = optimizer.create(config, rate), parameters()
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


def is_nam_scale(path):
    return path[-2:] == ("nam_bn", "scale")


def names(path):
    return tuple(key.key for key in path)


def by_numpy(config, steps):
    leaves = jax.tree_util.tree_leaves_with_path(parameters())
    params = {names(path): leaf for path, leaf in leaves}
    momenta = dict.fromkeys(params, 0.0)
    for step in range(steps):
        grads = gradient(params)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for path, p in params.items():
            direction, momenta[path] = _direction(config, path, p, grads[path], norm, momenta[path])
            new = p - rate(step) * direction
            if config.sparsity_mode == "proximal" and is_nam_scale(path):
                threshold = config.sparsity * rate(step) / (1 - config.momentum)
                new = np.sign(new) * np.maximum(np.abs(new) - threshold, 0)
            params[path] = new
    return params


def _direction(config, path, p, g, norm, momentum):
    """The direction of an update of one leaf, and its new momentum."""
    if config.clip_norm and norm > config.clip_norm:
        g = g * config.clip_norm / norm
    if config.sparsity_mode == "sign" and is_nam_scale(path):
        g = g + config.sparsity * np.sign(p)
    if config.weight_decay_on == "all" or path[-1] == "kernel":
        g = g + config.weight_decay * p
    momentum = g + config.momentum * momentum
    return (g + config.momentum * momentum if config.nesterov else momentum), momentum


def assert_same(found, expected):
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert leaf.dtype == np.float64
        np.testing.assert_allclose(leaf, expected[names(path)], rtol=1e-12, atol=1e-14)


# Large, so that a part in a wrong place shows.
STRONG = {"weight_decay": 0.3, "sparsity": 0.4, "momentum": 0.8}


# The first gradients are longer than 4, and the last are not.
@pytest.mark.parametrize("decay_on", ["all", "kernels"])
@pytest.mark.parametrize(("nesterov", "clip_norm"), [(False, 0.0), (True, 4.0)])
@pytest.mark.parametrize("mode", ["sign", pytest.param("proximal", marks=pytest.mark.slow)])
def test_chain_is_that_of_numpy(x64, mode, nesterov, clip_norm, decay_on):
    config = optimizer_config(
        sparsity_mode=mode,
        nesterov=nesterov,
        clip_norm=clip_norm,
        weight_decay_on=decay_on,
        **STRONG,
    )
    assert_same(by_optax(config, 4), by_numpy(config, 4))


@pytest.mark.parametrize("mode", ["sign", "proximal"])
def test_chain_without_any_option_is_gradient_descent(x64, mode):
    config = optimizer_config(sparsity_mode=mode, momentum=0.0, weight_decay=0.0)
    params = parameters()
    found = by_optax(config, 1)
    expected = jax.tree.map(lambda p, g: p - rate(0) * g, params, gradient(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


@pytest.mark.parametrize("mode", ["sign", "proximal"])
def test_scales_are_penalised_and_not_decayed_where_kernels_alone_are(x64, mode):
    config = optimizer_config(
        sparsity_mode=mode, sparsity=0.1, momentum=0.0, weight_decay=0.5, weight_decay_on="kernels"
    )
    params = jax.tree.map(np.ones_like, parameters())
    tx = optimizer.create(config, lambda step: 1.0)
    updates, _ = tx.update(jax.tree.map(np.zeros_like, params), tx.init(params), params)
    change = {names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}
    for path, leaf in change.items():
        expected = -0.1 if is_nam_scale(path) else -0.5 if path[-1] == "kernel" else 0.0
        np.testing.assert_allclose(leaf, expected, rtol=1e-12)


@pytest.mark.parametrize("mode", ["sign", "proximal"])
@pytest.mark.parametrize(
    ("name", "momentum", "nesterov"),
    [
        *[("sgd", 0.0, False), ("sgd", 0.9, False), ("sgd", 0.9, True), ("lars", 0.9, False)],
        *[("adamw", 0.0, False), ("adamw", 0.0, True), ("lamb", 0.0, False), ("muon", 0.9, True)],
    ],
)
def test_penalty_has_the_minimum_of_its_formula(x64, mode, name, momentum, nesterov):
    """Of (x − 1)² / 2 + |x| / 2, which is at 1/2."""
    config = optimizer_config(
        name=name,
        sparsity_mode=mode,
        sparsity=0.5,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=0.0,
    )
    # Divided by their root, gradients never get small: the learning rate has to.
    decay = 1.0 if name in ("sgd", "lars") else 0.99
    tx = optimizer.create(config, lambda step: 0.01 * decay ** jnp.maximum(step - 4000, 0))
    params = {"nam_bn": {"scale": jnp.ones(1)}}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda x: x - 1, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=6000)
    np.testing.assert_allclose(params["nam_bn"]["scale"], 0.5, rtol=1e-9)


def test_proximal_mode_reaches_exact_zeros(x64):
    config = optimizer_config(sparsity_mode="proximal", **{**STRONG, "sparsity": 100.0})
    found = by_optax(config, 1)
    np.testing.assert_array_equal(found["attention"]["nam_bn"]["scale"], 0)
    assert all(np.all(leaf != 0) for leaf in (found["bn"]["scale"], found["conv"]["kernel"]))


def test_kernels_are_those_of_convolutions_and_linear_layers():
    marked = jax.tree_util.tree_leaves_with_path(kernels(parameters()))
    chosen = {names(path) for path, is_kernel in marked if is_kernel}
    assert chosen == {("conv", "kernel"), ("head", "kernel")}


def test_learning_rate_grows_with_the_batch_size():
    config = optimizer_config(schedule="constant", reference_batch_size=256)
    scale = optimizer.batch_size_scale(config, 4096)
    schedule = optimizer.schedule(config, 10, 0, scale=scale)
    np.testing.assert_allclose(schedule(jnp.asarray(3)), 16 * PEAK, rtol=1e-6)
    assert optimizer.batch_size_scale(optimizer_config(), 4096) == 1


def test_lars_scales_kernels_by_their_norms(x64):
    config = optimizer_config(name="lars", weight_decay=0.1, momentum=0.5)
    tx = optimizer.create(config, lambda step: PEAK)
    rng = np.random.default_rng(0)
    params, grads = (
        {"conv": {"kernel": rng.standard_normal((3, 4)), "bias": rng.standard_normal(4)}}
        for _ in range(2)
    )
    state, velocity = tx.init(params), 0.0
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        kernel = params["conv"]["kernel"]
        direction = grads["conv"]["kernel"] + 0.1 * kernel
        trust = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(direction)
        velocity = 0.5 * velocity - PEAK * trust * direction
        np.testing.assert_allclose(updates["conv"]["kernel"], velocity, rtol=1e-9)
        params = optax.apply_updates(params, updates)
    # Neither decay nor trust ratio: −0.1 g, then −0.1 g − 0.05 g.
    np.testing.assert_allclose(updates["conv"]["bias"], -0.15 * grads["conv"]["bias"], rtol=1e-9)


# AdamW, LAMB and Muon.


def adaptive_by_numpy(config, steps):
    """The parameters after some updates, from the definitions of the papers."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters())
    params = {names(path): leaf for path, leaf in leaves}
    m, v = ({path: np.zeros_like(p) for path, p in params.items()} for _ in range(2))
    for step in range(steps):
        grads = gradient(params)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for path, p in params.items():
            g, is_scale = grads[path], is_nam_scale(path)
            if config.clip_norm and norm > config.clip_norm:
                g = g * config.clip_norm / norm
            if is_scale and config.sparsity_mode == "sign":
                g = g + config.sparsity * np.sign(p)
            is_matrix = config.name == "muon" and path[-1] == "kernel"
            beta = config.momentum if is_matrix else config.betas[0]
            m[path] = beta * m[path] + (1 - beta) * g
            v[path] = config.betas[1] * v[path] + (1 - config.betas[1]) * g**2
            root = np.sqrt(v[path] / (1 - config.betas[1] ** (step + 1))) + config.epsilon
            direction = _mean(config.nesterov, beta, m[path], g, step)
            direction = orthogonal(direction, config.epsilon) if is_matrix else direction / root
            if config.weight_decay_on == "all" or path[-1] == "kernel":
                direction = direction + config.weight_decay * p
            if config.name == "lamb" and path[-1] == "kernel":
                direction = direction * np.linalg.norm(p) / np.linalg.norm(direction)
            new = p - rate(step) * direction
            if is_scale and config.sparsity_mode == "proximal":
                threshold = config.sparsity * rate(step) / root
                new = np.sign(new) * np.maximum(np.abs(new) - threshold, 0)
            params[path] = new
    return params


def _mean(nesterov, beta, m, g, step):
    """The mean of the gradients, of which the first are not taken to be zeros."""
    if not nesterov:
        return m / (1 - beta ** (step + 1))
    return beta * m / (1 - beta ** (step + 2)) + (1 - beta) * g / (1 - beta ** (step + 1))


def orthogonal(kernel, epsilon=1e-8):
    """Five steps of Newton and Schulz, by the singular values; 0.2 √max(inputs, outputs) long."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / (np.linalg.norm(values) + epsilon)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return 0.2 * np.sqrt(max(matrix.shape)) * (left * values @ right).reshape(kernel.shape)


@pytest.mark.parametrize("decay_on", [pytest.param("all", marks=pytest.mark.slow), "kernels"])
@pytest.mark.parametrize("mode", [pytest.param("sign", marks=pytest.mark.slow), "proximal"])
@pytest.mark.parametrize(
    ("name", "nesterov", "clip_norm"),
    [
        *[("adamw", False, 0.0), ("lamb", False, 4.0), ("muon", True, 0.0)],
        pytest.param("adamw", True, 4.0, marks=pytest.mark.slow),
        pytest.param("muon", False, 4.0, marks=pytest.mark.slow),
    ],
)
def test_adaptive_chain_is_that_of_numpy(x64, name, nesterov, clip_norm, mode, decay_on):
    config = optimizer_config(
        name=name,
        nesterov=nesterov,
        clip_norm=clip_norm,
        sparsity_mode=mode,
        weight_decay_on=decay_on,
        betas=(0.6, 0.7),
        epsilon=1e-3,
        **STRONG,
    )
    found, expected = by_optax(config, 4), adaptive_by_numpy(config, 4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        np.testing.assert_allclose(leaf, expected[names(path)], rtol=1e-9, atol=1e-12)


@with_slow("name", ["adamw", "lamb", "muon"], ("lamb", "muon"))
def test_proximal_mode_of_adam_reaches_exact_zeros_of_nam_scales_alone(x64, name):
    config = optimizer_config(name=name, sparsity_mode="proximal", **{**STRONG, "sparsity": 1e4})
    found = by_optax(config, 2)
    np.testing.assert_array_equal(found["attention"]["nam_bn"]["scale"], 0)
    assert all(np.all(leaf != 0) for leaf in (found["bn"]["scale"], found["conv"]["kernel"]))


@pytest.mark.parametrize("mode", ["sign", "proximal"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_updates_in_both_modes(name, mode):
    config = optimizer_config(name=name, sparsity=0.1, sparsity_mode=mode)
    before, after = parameters(), by_optax(config, 1)
    for path in ("attention", "nam_bn", "scale"), ("conv", "kernel"):
        old, new = (functools.reduce(operator.getitem, path, tree) for tree in (before, after))
        assert np.all(old != new)


@pytest.mark.parametrize("mode", ["sign", "proximal"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_penalty_that_finds_no_scale_is_refused(name, mode):
    tx = optimizer.create(optimizer_config(name=name, sparsity=0.1, sparsity_mode=mode), rate)
    with pytest.raises(ValueError, match="would do nothing"):
        tx.init({"conv": {"kernel": jnp.ones((2, 2))}})


def test_kernels_of_convolutions_are_matrices_of_inputs_and_outputs(x64):
    config = optimizer_config(name="muon", momentum=0.0, weight_decay=0.0)
    tx = optimizer.create(config, lambda step: 1.0)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8))
    params = {"conv": {"kernel": kernel}}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -orthogonal(kernel), rtol=1e-9)
