"""The learning rate of every update."""

import optax

from train.core.config.optimizer_fields import OptimizerConfig
from train.core.errors import ConfigError


def batch_size_scale(config: OptimizerConfig, batch_size: int) -> float:
    """What the learning rate is multiplied by: the batch size over that which it is for.

    Args:
      config: The `optimizer` part of a run's config.
      batch_size: Number of images of an update.

    Source: P. Goyal et al., Accurate, Large Minibatch SGD, 2017,
    https://arxiv.org/abs/1706.02677, section 2.1.
    """
    return batch_size / config.reference_batch_size if config.reference_batch_size else 1.0


def schedule(
    config: OptimizerConfig,
    total_steps: int,
    warmup_steps: int,
    *,
    steps_per_epoch: int = 1,
    scale: float = 1.0,
) -> optax.Schedule:
    """The learning rate of every update.

    After a linear warm-up it is

    - `step`: multiplied by `decay_factor` at each milestone, a fraction of the whole run;
    - `cosine`: half a cosine from the peak to 0 at the end of the run;
    - `exponential`: multiplied by `decay_factor` after every epoch;
    - `constant`.

    Args:
      config: The `optimizer` part of a run's config.
      total_steps: Number of updates of the run.
      warmup_steps: Number of updates before the peak is reached, fewer than total_steps.
      steps_per_epoch: Number of updates of an epoch.
      scale: Factor of every value.

    Returns:
      A function of the number of updates done so far.
    """
    peak = config.learning_rate * scale
    match config.schedule:
        case "step":
            drops: dict[int, float] = {}
            for fraction in config.milestones:
                step = round(fraction * total_steps) - warmup_steps
                drops[step] = drops.get(step, 1.0) * config.decay_factor
            after = optax.piecewise_constant_schedule(peak, drops)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, total_steps - warmup_steps)
        case "exponential":
            after = optax.exponential_decay(
                peak, steps_per_epoch, config.decay_factor, staircase=True
            )
        case "constant":
            after = optax.constant_schedule(peak)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def warmup_steps(config: OptimizerConfig, steps_per_epoch: int, total_steps: int) -> int:
    """Number of the first updates in which the learning rate rises.

    Args:
      config: The `optimizer` part of a run's config.
      steps_per_epoch: Number of updates of an epoch.
      total_steps: Number of updates of the run.

    Raises:
      ConfigError: the run is not longer than that.
    """
    steps = round(config.warmup_epochs * steps_per_epoch)
    if steps >= total_steps:
        raise ConfigError(
            f"config.optimizer.warmup_epochs: {config.warmup_epochs:g} epochs are {steps:.4g} "
            f"steps, but the run has {total_steps} (config.steps, config.epochs); set fewer."
        )
    return steps
