"""The learning-rate schedule and the optax chain."""

from collections.abc import Callable

import jax
import optax

from nam_jax import add_sparsity_penalty, proximal_sparsity
from train.core.config.fields import OptimizerConfig, OptimizerName
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
    config: OptimizerConfig, total_steps: int, warmup_steps: int, *, scale: float = 1.0
) -> optax.Schedule:
    """The learning rate of every update.

    After a linear warm-up it is

    - `step`: multiplied by `decay_factor` at each milestone, a fraction of the whole run;
    - `cosine`: half a cosine from the peak to 0 at the end of the run;
    - `constant`.

    Args:
      config: The `optimizer` part of a run's config.
      total_steps: Number of updates of the run.
      warmup_steps: Number of updates before the peak is reached, fewer than total_steps.
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
            f"steps, but the run has {total_steps} (config.steps, config.epochs)."
        )
    return steps


def create(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """The optax chain; the order of its parts decides what they mean.

    sgd:  clip → penalty → weight decay → momentum → learning rate → proximal
    lars: clip → penalty → weight decay → trust ratio → learning rate → momentum → proximal

    LARS decays and scales kernels only, by the ratio of their norm to that of their update.

    A gradient g moves the parameters by η g / (1 − momentum) in all, since momentum repeats it. So
    the threshold of the proximal step is p η / (1 − momentum): the minimum is that of the loss
    plus p Σ|scale|, with or without momentum, and the same as that of the sign update.

    Args:
      config: The `optimizer` part of a run's config.
      learning_rate: Learning rate of every update, from `schedule`.

    Returns:
      The chain; its updates need the parameters.

    Source: Y. You, I. Gitman and B. Ginsburg, Large Batch Training of Convolutional
    Networks, 2017, https://arxiv.org/abs/1708.03888.
    """
    chain = []
    if config.clip_norm:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.sparsity_mode == "sign":
        chain.append(add_sparsity_penalty(config.sparsity))
    chain += UPDATES[config.name](config, learning_rate)
    if config.sparsity_mode == "proximal":
        total = 1 / (1 - config.momentum)
        chain.append(proximal_sparsity(config.sparsity, lambda step: total * learning_rate(step)))
    return optax.chain(*chain)


def _sgd(
    config: OptimizerConfig, learning_rate: optax.Schedule
) -> list[optax.GradientTransformation]:
    return [
        optax.add_decayed_weights(
            config.weight_decay, kernels if config.weight_decay_on == "kernels" else None
        ),
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(learning_rate),
    ]


def _lars(
    config: OptimizerConfig, learning_rate: optax.Schedule
) -> list[optax.GradientTransformation]:
    return [
        optax.lars(
            learning_rate,
            weight_decay=config.weight_decay,
            weight_decay_mask=kernels,
            trust_ratio_mask=kernels,
            momentum=config.momentum,
            nesterov=config.nesterov,
        )
    ]


# From the gradients to the updates, by the optimizer's name.
UPDATES: dict[
    OptimizerName,
    Callable[[OptimizerConfig, optax.Schedule], list[optax.GradientTransformation]],
] = {"sgd": _sgd, "lars": _lars}


def kernels(params: optax.Params) -> optax.Params:
    """True for the kernels of convolutions and linear layers, False for all else."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
