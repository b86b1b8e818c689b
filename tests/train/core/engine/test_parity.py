"""Training losses of the reference implementation, through the trainer's own step and chain."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.helpers.arrays import assert_close
from tests.helpers.networks import network
from train.core.config.fields import default_config, replaced
from train.core.devices.mesh import create, jit_replicated
from train.core.engine import optimizer, step
from train.core.engine.state import TrainState

pytestmark = pytest.mark.usefixtures("optimized", "x64")


@pytest.mark.parametrize(
    "tag",
    [
        pytest.param("cifar_resnet18_nam_channel", marks=pytest.mark.long),
        pytest.param("cifar_resnet18_nam", marks=pytest.mark.slow),
        pytest.param("cifar_resnet18_cbam", marks=pytest.mark.long),
        pytest.param("cifar_resnet18_bam", marks=pytest.mark.long),
        pytest.param("cifar_resnet50_nam_channel", marks=pytest.mark.long),
    ],
)
def test_losses_of_the_reference(tag: str) -> None:
    expected = network(tag)
    changes = {
        "optimizer.schedule": "constant",
        "optimizer.learning_rate": 0.01,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "optimizer.sparsity": 1e-3 if "nam" in tag else 0.0,
    }
    config = replaced(default_config(), changes)
    tx = optimizer.create(config.optimizer, optimizer.schedule(config.optimizer, 10, 0))
    variables = jax.tree.map(jnp.asarray, expected.variables)
    state = TrainState(jnp.zeros((), int), **variables, opt_state=tx.init(variables["params"]))
    targets = jax.nn.one_hot(expected.labels, expected.eval_logits.shape[1])

    def update(state: TrainState) -> Any:
        x, model = jnp.asarray(expected.x), expected.module
        # In one program with the step, whose own logits they are: it is compiled once.
        logits, _ = model.apply(state.variables, x, train=True, mutable="batch_stats")
        return logits, *step.train_step(state, x, targets, model=model, tx=tx, config=config)

    jitted = jit_replicated(update, create(1, devices=jax.devices()[:1]))
    losses = []
    for _ in expected.losses:
        _, state, metrics = jitted(state)
        losses.append(metrics["cross_entropy"])
    assert_close(jnp.stack(losses), expected.losses)
    assert_close(jitted(state)[0], expected.train_logits_after)
