"""The programs that the devices run: an update, several in one call, and an evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from train.core.config.fields import Config
from train.core.data import on_device, resident
from train.core.data.feed import Batch
from train.core.devices import mesh as mesh_lib
from train.core.engine.step import Metrics, TrainState, eval_step, streams, train_step


def build_train_step(
    model: nn.Module,
    config: Config,
    mesh: Mesh,
    tx: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    steps_per_epoch: int,
    longest_dispatch: int = 1,
) -> Any:
    """Compiles the training step: batch, augmentation, update.

    With a longest_dispatch above 1 the program makes as many updates of a resident split as it
    is told: (state, split, count) -> (state, metrics with an axis of longest_dispatch, of
    which the first count entries are set).

    Args:
      model: takes images and `train`.
      config: of the run.
      mesh: of the run.
      tx: the optax chain.
      learning_rate: the schedule in the chain, for the metrics.
      steps_per_epoch: batches of a pass over the split.
      longest_dispatch: updates of one call, at most.

    Returns:
      A jitted function of (state, split) for a resident split, of (state, batch) for a
      streamed one, that gives (state, metrics) and donates the state.
    """
    key, on_cpu = streams(config.seed)["augment"], mesh_lib.is_cpu(mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rows = mesh_lib.local_rows(mesh, config.batch_size)
        keys = on_device.row_keys(key, state.step, rows)
        images, targets = on_device.train_batch(
            keys,
            batch.images,
            jax.nn.one_hot(batch.labels, model.num_classes),
            config.data,
            config.model.dtype,
        )
        new_state, metrics = train_step(
            state, images, targets, model=model, tx=tx, config=config, on_cpu=on_cpu
        )
        # As a float GPUs and TPUs sum it over the devices together with the rest.
        bad_records = mesh_lib.total(batch.bad_records.sum().astype(jnp.float32))
        more = {"learning_rate": learning_rate(state.step), "bad_records": bad_records}
        return new_state, {**metrics, **more}

    def resident_step(
        state: TrainState, split: resident.ResidentSplit
    ) -> tuple[TrainState, Metrics]:
        rows = mesh_lib.local_rows(mesh, config.batch_size)
        index = state.step % steps_per_epoch
        return step(state, resident.take(split, index, config.batch_size, rows))

    def resident_steps(
        state: TrainState, split: resident.ResidentSplit, count: jax.Array
    ) -> tuple[TrainState, Metrics]:
        return _repeat(lambda s: resident_step(s, split), state, count, longest_dispatch)

    if config.data.loader == "streaming":
        return mesh_lib.jit_replicated(step, mesh, donate_argnums=0, rows_argnum=1)
    program = resident_step if longest_dispatch == 1 else resident_steps
    return mesh_lib.jit_replicated(program, mesh, donate_argnums=0)


def _repeat(
    step: Callable[[TrainState], tuple[TrainState, Metrics]],
    state: TrainState,
    count: jax.Array,
    limit: int,
) -> tuple[TrainState, Metrics]:
    """Makes count steps, at most limit, and stacks their metrics."""
    _, shapes = jax.eval_shape(step, state)
    unset = jax.tree.map(lambda metric: jnp.zeros((limit, *metric.shape), metric.dtype), shapes)

    def body(index: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        state, stacked = carry
        state, metrics = step(state)
        return state, jax.tree.map(lambda all, one: all.at[index].set(one), stacked, metrics)

    return jax.lax.fori_loop(0, count, body, (state, unset))


def build_eval_step(model: nn.Module, config: Config, mesh: Mesh) -> Any:
    """Compiles the evaluation of one batch.

    Returns:
      A jitted function of (variables, split, index of the batch) for a resident split, of
      (variables, batch) for a streamed one, that gives the sums of `eval_step`.
    """

    def step(variables: Any, batch: Batch) -> Metrics:
        images = on_device.normalize(
            batch.images, config.data.mean, config.data.std, config.model.dtype
        )
        return eval_step(variables, images, batch.labels, batch.mask, model=model)

    def resident_step(variables: Any, split: resident.ResidentSplit, index: jax.Array) -> Metrics:
        rows = mesh_lib.local_rows(mesh, config.batch_size)
        return step(variables, resident.take(split, index, config.batch_size, rows))

    if config.data.loader == "streaming":
        return mesh_lib.jit_replicated(step, mesh, rows_argnum=1)
    return mesh_lib.jit_replicated(resident_step, mesh)
