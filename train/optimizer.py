"""The learning-rate schedule and the optax chain.

The order of the chain, which decides what each part means:

penalty → weight decay → momentum → learning rate
"""

import optax
from ml_collections import ConfigDict

from nam_jax import add_sparsity_penalty


def schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate of every step: dropped by a factor at each milestone.

    Args:
      config: the `optimizer` part of a run's config.
      total_steps: of the run; milestones are fractions of it.

    Returns:
      A function of the number of updates done so far.
    """
    drops = {round(fraction * total_steps): config.decay_factor for fraction in config.milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


def create(config: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """SGD as the authors train: L2 weight decay on every parameter, then momentum.

    Args:
      config: the `optimizer` part of a run's config.
      learning_rate: from `schedule`.

    Returns:
      The chain; its updates need the parameters.
    """
    return optax.chain(
        add_sparsity_penalty(config.sparsity),
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
