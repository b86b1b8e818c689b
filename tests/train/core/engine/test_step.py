"""The training step: the same numbers on one device and on four, and what it reports."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nam_jax
from nam_jax.models.resnet import BasicBlock, ResNet
from tests.helpers.arrays import assert_close
from train.core.config.fields import Config, Loss, default_config, replaced
from train.core.data.on_device import row_keys, train_batch
from train.core.data.resident import Resident, ResidentSplit
from train.core.data.sources.digits import Digits
from train.core.data.sources.split import Split
from train.core.devices.mesh import (
    create,
    jit_replicated,
    local_rows,
    mean,
    norm_axis,
    replicated,
    total,
)
from train.core.engine import optimizer, step
from train.core.engine.compiled_steps import build_train_step
from train.core.engine.experiment import Experiment, streams
from train.core.engine.state import TrainState, init_state

IDENTITY = optax.identity()
DROPPING = {"model.drop_path": 0.5, "model.dropout": 0.5}
LABELS = np.arange(16, dtype=np.int32) % 3


def small_config(**changes: Any) -> Config:
    small = {"batch_size": 8, "optimizer.schedule": "constant", "data.crop_padding": 1}
    return replaced(default_config(), {**small, **changes})


def small_model(**fields: Any) -> ResNet:
    few = {"stage_sizes": (1,), "width": 4, "attention": "nam", "stem": "cifar"}
    return ResNet(BasicBlock, num_classes=3, **few | fields)


@functools.cache
def initial_variables(stage_sizes: tuple[int, ...]) -> Any:
    init = functools.partial(small_model(stage_sizes=stage_sizes).init, train=False)
    return jax.device_get(jax.jit(init)(jax.random.key(1), np.zeros((1, 6, 6, 1), np.float32)))


def initial_state(
    tx: optax.GradientTransformation = IDENTITY,
    with_ema: bool = False,
    stage_sizes: tuple[int, ...] = (1,),
) -> TrainState:
    """A fresh state, in float64 where that is switched on."""

    def init(variables: Any) -> TrainState:
        state = init_state(variables, tx, with_ema=with_ema)
        widest = jnp.zeros(()).dtype
        return jax.tree.map(
            lambda leaf: leaf.astype(widest) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            state,
        )

    return jax.jit(init)(initial_variables(stage_sizes))


class Grouped(Resident):
    """Dispatches several updates at once, as on GPUs and TPUs."""

    longest_dispatch = 8


def random_split() -> ResidentSplit:
    images = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 1), np.uint8)
    return ResidentSplit(images, LABELS, np.arange(16, dtype=np.int32))


@functools.cache
def train(num_devices: int, steps: int, loader: type[Resident] = Resident, **changes: Any) -> Any:
    """Trains a small model on random images; returns the state and the last metrics."""
    experiment = small_experiment(small_config(**changes), num_devices, steps, loader)
    sizes = experiment.model.stage_sizes
    state = initial_state(experiment.tx, experiment.config.ema_decay > 0, sizes)
    split = random_split()
    state, split = jax.device_put((state, split), replicated(experiment.mesh))
    train_step = build_train_step(experiment)
    if experiment.is_grouped:
        state, stacked = train_step(state, split, np.int32(steps))
        assert all(len(values) == loader.longest_dispatch for values in stacked.values())
        return state, {name: values[steps - 1] for name, values in stacked.items()}
    for _ in range(steps):
        state, metrics = train_step(state, split)
    return state, metrics


def small_experiment(
    config: Config, num_devices: int, steps: int, loader: type[Resident]
) -> Experiment:
    sync_bn_devices = config.model.sync_bn_devices
    mesh = create(config.batch_size, sync_bn_devices, jax.devices()[:num_devices])
    learning_rate = optimizer.schedule(config.optimizer, steps, 0)
    split = Split("train", 16, 3, (6, 6, 1), load=pytest.fail)
    model = {"dtype": config.model.dtype, "axis_name": norm_axis(mesh)}
    if config.model.drop_path:
        # Of one block alone the branch is never dropped.
        drops = {"drop_path": config.model.drop_path, "dropout": config.model.dropout}
        model |= {"stage_sizes": (1, 1), **drops}
    return Experiment(
        config=config,
        mesh=mesh,
        loader=loader(config, mesh),
        source=Digits(config.data),
        train_split=split,
        eval_split=split,
        steps_per_epoch=2,
        total_steps=steps,
        model=small_model(**model),
        learning_rate=learning_rate,
        tx=optimizer.create(config.optimizer, learning_rate),
    )


def test_options_that_are_off_are_not_in_the_program() -> None:
    """It is that of a step which knows of none of them, to the byte."""
    experiment = small_experiment(small_config(), 2, 3, Resident)
    config, mesh, model = experiment.config, experiment.mesh, experiment.model
    key = streams(config.seed)["augment"]
    tx = optax.chain(
        nam_jax.add_sparsity_penalty(0.0),
        optax.add_decayed_weights(config.optimizer.weight_decay),
        optax.trace(0.9),
        optax.scale_by_learning_rate(optax.constant_schedule(0.1)),
    )

    def update(state: TrainState, split: ResidentSplit) -> Any:
        batch = experiment.loader.batch(split, state.step % 2)
        keys = row_keys(key, state.step, local_rows(mesh, 8))
        targets = jax.nn.one_hot(batch.labels, 3)
        images, targets = train_batch(keys, batch.images, targets, config.data, "float32")

        def loss(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
            smoothed = optax.smooth_labels(targets, 0.0)
            return optax.softmax_cross_entropy(logits, smoothed).mean(), (logits, new)

        (value, (logits, new)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        labels = targets.argmax(-1)
        errors = {f"top{k}_error": 100 * step.is_wrong(logits, labels, k).mean() for k in (1, 5)}
        metrics = {"cross_entropy": value, **errors}
        statistics, (grads, metrics) = mean((new["batch_stats"], (grads, metrics)), at_once=True)
        penalty = nam_jax.sparsity_penalty(state.params, 0.0)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = {"step": state.step + 1, "params": optax.apply_updates(state.params, updates)}
        new_state = TrainState(**params, batch_stats=statistics, opt_state=opt_state)
        metrics |= {"loss": metrics["cross_entropy"] + penalty, "penalty": penalty}
        bad_records = total(batch.bad_records.sum().astype(jnp.float32))
        rate = optax.constant_schedule(0.1)(state.step)
        return new_state, {**metrics, "learning_rate": rate, "bad_records": bad_records}

    state, split = initial_state(experiment.tx), random_split()
    plain = jit_replicated(update, mesh, donate_argnums=0).lower(state, split)
    assert build_train_step(experiment).lower(state, split).as_text() == plain.as_text()


@pytest.mark.usefixtures("x64")
def test_binary_cross_entropy_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits, targets = 4 * rng.standard_normal((6, 3)), rng.random((6, 3))
    shares = 1 / (1 + np.exp(-logits))
    losses = targets * np.log(shares) + (1 - targets) * np.log(1 - shares)
    found = step.cross_entropy(logits, targets, "sigmoid")
    np.testing.assert_allclose(found, -losses.mean(-1), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("kind", "threshold", "smoothing"),
    [
        *[("sigmoid", 0.0, 0.0), ("sigmoid", 0.0, 0.3), ("sigmoid", 0.2, 0.3)],
        *[("softmax", 0.0, 0.0), ("softmax", 0.0, 0.3)],
    ],
)
def test_mixed_targets_are_smoothed_and_then_compared(
    kind: str, threshold: float, smoothing: float
) -> None:
    rng = np.random.default_rng(0)
    images, weights = rng.standard_normal((4, 5)), rng.standard_normal((5, 3))
    targets = np.array([[0.7, 0.3, 0], [0.15, 0.85, 0], [0, 0, 1], [0.5, 0, 0.5]])
    fields = {"loss": kind, "loss_threshold": threshold, "label_smoothing": smoothing}

    def apply(variables: Any, images: jax.Array) -> Any:
        return images @ variables["params"], {"batch_stats": {}}

    config = small_config(**fields)
    _, (grads, metrics) = step._gradients(weights, {}, images, targets, apply, config)
    smoothed = (1 - smoothing) * targets + smoothing / 3
    wanted = (smoothed > threshold) * 1.0 if threshold else smoothed
    exponentials = np.exp(images @ weights)
    if kind == "softmax":
        shares = exponentials / exponentials.sum(-1, keepdims=True)
        losses, terms = wanted * np.log(shares), 4
    else:
        shares = exponentials / (1 + exponentials)
        losses, terms = wanted * np.log(shares) + (1 - wanted) * np.log(1 - shares), 12
    np.testing.assert_allclose(metrics["cross_entropy"], -losses.sum() / terms, rtol=1e-9)
    np.testing.assert_allclose(grads, images.T @ (shares - wanted) / terms, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_a_network_that_drops_is_trained_with_its_rows_keys() -> None:
    plain, _ = train(1, 1, **{"model.drop_path": 1e-9})
    dropped, _ = train(1, 1, **DROPPING)
    kernels = (state.params["layer2_0"]["conv1"]["kernel"] for state in (plain, dropped))
    first, second = map(np.asarray, kernels)
    assert np.abs(first - second).max() > 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "changes",
    [
        {"data.mixup": 0.4, "data.cutmix": 0.4},
        {"data.mixup": 0.4, "loss": "sigmoid", "loss_threshold": 0.2, "optimizer.name": "lamb"},
        {**DROPPING, "optimizer.name": "muon"},
    ],
)
def test_global_statistics_equal_one_device(changes: dict[str, Any]) -> None:
    changes = {**changes, "model.dtype": "float64"}
    one, one_metrics = train(1, 3, **{"model.sync_bn_devices": -1}, **changes)
    four, four_metrics = train(4, 3, **{"model.sync_bn_devices": -1}, **changes)
    assert_close(four.variables, jax.tree.map(np.asarray, one.variables))
    assert_close(four_metrics, jax.tree.map(np.asarray, one_metrics))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_steps_of_one_dispatch_equal_those_of_several() -> None:
    changes = {"model.dtype": "float64", "ema_decay": 0.5}
    expected, last = train(2, 5, **changes)
    state, metrics = train(2, 5, Grouped, **changes)
    assert int(state.step) == 5
    assert_close(state.variables, jax.tree.map(np.asarray, expected.variables))
    assert_close(state.ema, jax.tree.map(np.asarray, expected.ema))
    assert_close(metrics, jax.tree.map(np.asarray, last))


@pytest.mark.usefixtures("x64")
def test_accumulated_parts_make_the_update_of_the_whole() -> None:
    # Where both parts hold the same images, their statistics are those of the whole batch.
    config = small_config(**{"model.dtype": "float64"})
    model, tx = small_model(dtype="float64"), optax.sgd(0.1)
    state = initial_state(tx)
    half = jax.random.normal(jax.random.key(1), (4, 6, 6, 1))
    images, targets = jnp.concatenate([half, half]), jax.nn.one_hot(LABELS[:4], 3)
    targets = jnp.concatenate([targets, targets])

    def update(count: int) -> Any:
        config.accumulate_steps = count
        arguments = {"model": model, "tx": tx, "config": config}
        mesh = create(1, devices=jax.devices()[:1])
        return jit_replicated(lambda: step.train_step(state, images, targets, **arguments), mesh)()

    (whole, whole_metrics), (parts, metrics) = update(1), update(2)
    assert_close(parts.params, jax.tree.map(np.asarray, whole.params))
    assert_close(metrics, jax.tree.map(np.asarray, whole_metrics))
    # Each part has updated the running statistics.
    first, both = (s.batch_stats["bn1"]["mean"] for s in (whole, parts))
    assert_close(both, np.asarray(first * (1 + 0.9)))


@pytest.mark.slow
def test_parts_see_their_own_rows() -> None:
    one, _ = train(1, 1, **DROPPING)
    four, _ = train(1, 1, accumulate_steps=4, **DROPPING)
    per_device, _ = train(4, 1, **DROPPING)
    # Four parts on one device normalise as four devices do.
    assert_close(four.params, jax.tree.map(np.asarray, per_device.params), tolerance=1e-6)
    assert np.abs(one.params["fc"]["kernel"] - four.params["fc"]["kernel"]).max() > 1e-6


def test_every_device_holds_the_same_state() -> None:
    changes = {"model.sync_bn_devices": 2, "ema_decay": 0.5}
    state, metrics = train(4, 3, **changes)
    for leaf in jax.tree.leaves((state, metrics)):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4
        assert all(np.array_equal(shards[0], shard) for shard in shards[1:])


@pytest.mark.slow
def test_statistics_per_device_are_not_global_ones() -> None:
    own, _ = train(4, 1)
    shared, _ = train(4, 1, **{"model.sync_bn_devices": -1})
    own_var, shared_var = (s.batch_stats["bn1"]["var"] for s in (own, shared))
    assert np.abs(own_var - shared_var).max() > 1e-4


def test_penalty_is_reported_and_reaches_gradients_once() -> None:
    plain, plain_metrics = train(1, 1)
    changes = {"optimizer.sparsity": 1.0, "optimizer.learning_rate": 0.1}
    sparse, metrics = train(1, 1, **changes)
    number = sum(s.size for p, s in jax.tree.leaves_with_path(plain.params) if "nam_bn" in str(p))
    # Half of the leaves under nam_bn are scales, which start at 1; the others are biases.
    np.testing.assert_allclose(metrics["penalty"], number / 2)
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"] + metrics["penalty"])
    assert plain_metrics["penalty"] == 0

    def scale(state: TrainState) -> jax.Array:
        return state.params["layer1_0"]["attention"]["channel"]["nam_bn"]["scale"]

    np.testing.assert_allclose(scale(plain) - scale(sparse), 0.1, rtol=1e-5)


@pytest.mark.slow
def test_averaged_weights_follow_their_formula() -> None:
    first, _ = train(1, 1)
    second, _ = train(1, 2)
    initial = initial_state().variables
    # The decay rates grow, 1/10 and 2/11, up to the config's.
    for highest, rates in ((0.75, (1 / 10, 2 / 11)), (0.15, (1 / 10, 0.15))):
        averaged, _ = train(1, 2, ema_decay=highest)
        expected = initial
        for rate, variables in zip(rates, (first.variables, second.variables), strict=True):
            expected = jax.tree.map(
                lambda a, b, rate=rate: rate * a + (1 - rate) * b, expected, variables
            )
        assert_close(averaged.ema, jax.tree.map(np.asarray, expected), tolerance=1e-6)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_statistics_in_float32() -> None:
    state, metrics = train(1, 1, **{"model.dtype": "bfloat16"})
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {jnp.dtype("float32")}
    assert metrics["loss"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("logits", "label", "k", "wrong"),
    [
        ([1.0, 3.0, 2.0], 1, 1, False),
        ([1.0, 3.0, 2.0], 2, 1, True),
        ([1.0, 3.0, 2.0], 2, 2, False),
        ([1.0, 3.0, 2.0], 0, 5, False),
        ([0.0, 0.0, 0.0], 0, 1, True),
        ([np.nan, np.nan, np.nan], 0, 1, True),
    ],
)
def test_is_wrong(logits: list[float], label: int, k: int, wrong: bool) -> None:
    assert bool(step.is_wrong(jnp.array([logits]), jnp.array([label]), k)[0]) is wrong


def test_eval_step_counts_unmasked_rows_only() -> None:
    mesh = create(4, devices=jax.devices()[:1])
    model = small_model()
    state = initial_state()
    images = jax.random.normal(jax.random.key(1), (4, 6, 6, 1))
    labels = jnp.array([0, 1, 2, 0])

    def sums(mask: list[bool], loss: Loss = "softmax") -> Any:
        def evaluate() -> Any:
            rows = images, labels, jnp.array(mask)
            return step.eval_step(state.variables, *rows, model=model, loss=loss)

        return jit_replicated(evaluate, mesh)()

    whole = sums([True, True, True, True])
    first, last = sums([True, True, False, False]), sums([False, False, True, True])
    assert int(whole["count"]) == 4
    for name in whole:
        np.testing.assert_allclose(whole[name], first[name] + last[name], rtol=1e-6)
    # At the start the logits are small: each of the three classes may well be there or not.
    binary = sums([True, True, False, False], "sigmoid")
    np.testing.assert_allclose(binary["cross_entropy"], 2 * np.log(2), atol=0.5)
    assert binary["cross_entropy"] != first["cross_entropy"]
