"""What a run has to remember, and its first value."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from train.core.devices.mesh import replicated
from train.core.engine.experiment import Experiment, streams


class TrainState(struct.PyTreeNode):
    """All that a run has to remember.

    Attributes:
      step: Number of updates so far, a scalar.
      params: Parameters of the network.
      batch_stats: Running statistics of the network's BatchNorms.
      opt_state: State of the optax chain.
      ema: Exponential moving average of params and batch_stats, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that are evaluated, by the prefix of their figures' names."""
        return {"": self.variables} | ({"ema_": self.ema} if self.ema is not None else {})


def init_state(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, *, with_ema: bool = False
) -> TrainState:
    """The state before the first update.

    Args:
      variables: Parameters and running statistics of the network.
      tx: Optax chain.
      with_ema: Whether to keep an average of the weights.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, dict(variables)) if with_ema else None,
    )


def initial_state(experiment: Experiment, variables: Any = None) -> TrainState:
    """The state before the first update, on all devices.

    Args:
      experiment: Experiment that the state is for.
      variables: Parameters and running statistics to start with; default: drawn from the run's
        seed.
    """
    return _initializer(experiment)(variables)


def abstract_state(experiment: Experiment) -> TrainState:
    """Shapes and shardings of the state, for devices that need not be there."""
    return _initializer(experiment).eval_shape(None)


def _initializer(experiment: Experiment) -> Any:
    key = streams(experiment.config.seed)["init"]

    def init(variables: Any) -> TrainState:
        if variables is None:
            images = jnp.zeros((1, *experiment.train_split.image_shape))
            variables = experiment.model.init(key, images, train=False)
        else:
            # The state is donated at every step; what was read from a file is not the state's.
            variables = jax.tree.map(jnp.copy, variables)
        variables = widened_to(variables, experiment.config.model.dtype)
        with_ema = experiment.config.ema_decay > 0
        return init_state(variables, experiment.tx, with_ema=with_ema)

    return jax.jit(init, out_shardings=replicated(experiment.mesh))


def widened_to(variables: Any, dtype: str) -> Any:
    """Variables in a type of the computation, where that is wider than their own."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, dtype)), variables)


@jax.jit
def is_finite(state: TrainState) -> jax.Array:
    """Whether no array of the state holds NaN or an infinity."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()
