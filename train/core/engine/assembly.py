"""What an experiment is run with: its state, its feeds and its training step."""

from typing import Any

import jax
import jax.numpy as jnp

from train.core.data import resident, streaming
from train.core.data.feed import Feed
from train.core.devices import mesh as mesh_lib
from train.core.engine import compiled_steps
from train.core.engine import step as step_lib
from train.core.engine.experiment import Experiment


def initial_state(experiment: Experiment, variables: Any = None) -> step_lib.TrainState:
    """The state before the first update, on all devices.

    Args:
      experiment: the run.
      variables: to start with; default: drawn from the run's seed.
    """
    return _initializer(experiment)(variables)


def abstract_state(experiment: Experiment) -> step_lib.TrainState:
    """Shapes and shardings of the state, for devices that need not be there."""
    return _initializer(experiment).eval_shape(None)


def _initializer(experiment: Experiment) -> Any:
    key = step_lib.streams(experiment.config.seed)["init"]

    def widened(x: jax.Array) -> jax.Array:
        return x.astype(jnp.promote_types(x.dtype, experiment.config.model.dtype))

    def init(variables: Any) -> step_lib.TrainState:
        if variables is None:
            images = jnp.zeros((1, *experiment.train_split.image_shape))
            variables = experiment.model.init(key, images, train=False)
        else:
            # The state is donated at every step; what was read from a file is not the state's.
            variables = jax.tree.map(jnp.copy, variables)
        variables = jax.tree.map(widened, variables)
        with_ema = experiment.config.ema_decay > 0
        return step_lib.init_state(variables, experiment.tx, with_ema=with_ema)

    return jax.jit(init, out_shardings=mesh_lib.replicated(experiment.mesh))


def train_feed(experiment: Experiment) -> Feed:
    """Opens the training split by the loader that the config names."""
    config, split, mesh = experiment.config, experiment.train_split, experiment.mesh
    key = step_lib.streams(config.seed)["order"]
    if config.data.loader == "streaming":
        return streaming.train_feed(split, config, mesh, key, experiment.total_steps)
    return resident.train_feed(
        split,
        mesh,
        key,
        experiment.steps_per_epoch,
        experiment.dispatches,
        is_grouped=experiment.is_grouped,
    )


def train_example(experiment: Experiment) -> tuple[Any, ...]:
    """Shapes of the arguments of the training step, after the state; reads no images."""
    split, mesh = experiment.train_split, experiment.mesh
    if experiment.config.data.loader == "streaming":
        return (streaming.example(split.image_shape, experiment.config.batch_size, mesh),)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=mesh_lib.replicated(mesh))
    resident_split = resident.example(split, mesh)
    return (resident_split, count) if experiment.is_grouped else (resident_split,)


def eval_feed(experiment: Experiment) -> Feed:
    """Opens the evaluation split by the loader that the config names."""
    config, split, mesh = experiment.config, experiment.eval_split, experiment.mesh
    if config.data.loader == "streaming":
        return streaming.eval_feed(split, config, mesh)
    return resident.eval_feed(split, mesh, config.batch_size)


def lower_train_step(experiment: Experiment, state: Any, example: tuple[Any, ...]) -> Any:
    """The training step, ready to be compiled for the devices of the experiment's mesh.

    Args:
      experiment: the run.
      state: or its shapes.
      example: arguments of the step, or their shapes.
    """
    build = experiment.model, experiment.config, experiment.mesh
    train_step = compiled_steps.build_train_step(
        *build,
        experiment.tx,
        experiment.learning_rate,
        experiment.steps_per_epoch,
        experiment.longest_dispatch,
    )
    return train_step.lower(state, *example)
