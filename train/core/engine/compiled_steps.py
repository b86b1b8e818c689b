"""The programs that the devices run: an update, several in one call, and an evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nam_jax.inspection import GateMoments, gate_moments
from train.core.data.feed import Batch
from train.core.data.on_device import drop_keys, normalize, row_keys, train_batch
from train.core.devices.mesh import AXES, is_cpu, jit_replicated, local_rows, total
from train.core.engine.experiment import Evaluation, Experiment, streams
from train.core.engine.state import TrainState
from train.core.engine.step import Metrics, eval_step, train_step

# What `busy` says meanwhile.
COMPILING = "compiling, which takes minutes for a large network"


def build_train_step(experiment: Experiment) -> Any:
    """Makes the training step: batch, augmentation, update.

    Where updates are grouped the program makes as many as it is told: (state, fed, count) ->
    (state, metrics with an axis of the longest dispatch, of which the first count entries are
    set).

    Args:
      experiment: Experiment that the step is of.

    Returns:
      A jitted function of (state, fed), where fed is what the loader feeds, that gives
      (state, metrics) and donates the state.
    """
    loader, key = experiment.loader, streams(experiment.config.seed)["augment"]

    def update(state: TrainState, fed: Any) -> tuple[TrainState, Metrics]:
        batch = loader.batch(fed, state.step % experiment.steps_per_epoch)
        return _update(experiment, key, state, batch)

    def updates(state: TrainState, fed: Any, count: jax.Array) -> tuple[TrainState, Metrics]:
        return _repeat(lambda s: update(s, fed), state, count, loader.longest_dispatch)

    program = updates if experiment.is_grouped else update
    return jit_replicated(
        program, experiment.mesh, donate_argnums=0, rows_argnum=loader.rows_argnum
    )


def _update(
    experiment: Experiment, key: jax.Array, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """The update by the rows of a batch that one device has."""
    config, mesh, model = experiment.config, experiment.mesh, experiment.model
    rows = local_rows(mesh, config.batch_size)
    keys = row_keys(key, state.step, rows)
    images, targets = train_batch(
        keys,
        batch.images,
        jax.nn.one_hot(batch.labels, model.num_classes),
        config.data,
        config.model.dtype,
    )
    new_state, metrics = train_step(
        state,
        images,
        targets,
        model=model,
        tx=experiment.tx,
        config=config,
        keys=drop_keys(keys) if config.model.drop_path or config.model.dropout else None,
        on_cpu=is_cpu(mesh),
    )
    # As a float GPUs and TPUs sum it over the devices together with the rest.
    bad_records = total(batch.bad_records.sum().astype(jnp.float32))
    learning_rate = experiment.learning_rate(state.step)
    return new_state, {**metrics, "learning_rate": learning_rate, "bad_records": bad_records}


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


def build_eval_step(evaluation: Evaluation) -> Any:
    """Makes the evaluation of one batch.

    Returns:
      A jitted function of (variables, *what the loader feeds) that gives the sums of `eval_step`.
    """
    config, model, loader = evaluation.config, evaluation.model, evaluation.loader

    def program(variables: Any, fed: Any, index: Any = None) -> Metrics:
        batch = loader.batch(fed, index)
        data = config.data
        images = normalize(batch.images, data.mean, data.std, config.model.dtype)
        return eval_step(variables, images, batch.labels, batch.mask, model=model, loss=config.loss)

    return jit_replicated(program, evaluation.mesh, rows_argnum=loader.rows_argnum)


def build_gate_step(evaluation: Evaluation) -> Any:
    """Makes the moments of NAM's gates for one batch.

    Returns:
      A jitted function of (variables, *what the loader feeds) that gives `GateMoments` by the path
      of their module.
    """
    config, model, loader = evaluation.config, evaluation.model, evaluation.loader

    def program(variables: Any, fed: Any, index: Any = None) -> dict[str, GateMoments]:
        batch = loader.batch(fed, index)
        images = normalize(batch.images, config.data.mean, config.data.std, config.model.dtype)
        return gate_moments(model, variables, images, mask=batch.mask, axis_name=AXES, train=False)

    return jit_replicated(program, evaluation.mesh, rows_argnum=loader.rows_argnum)


def lower_train_step(experiment: Experiment, state: Any, example: tuple[Any, ...]) -> Any:
    """The training step, ready to be compiled for the devices of the experiment's mesh.

    Args:
      experiment: Experiment that the step is of.
      state: State of the run, or its shapes.
      example: Arguments of the step after the state, or their shapes.
    """
    return build_train_step(experiment).lower(state, *example)
