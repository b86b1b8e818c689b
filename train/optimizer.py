"""The learning-rate schedule and the optax chain."""

import jax
import optax
from ml_collections import ConfigDict

from nam_jax import add_sparsity_penalty, proximal_sparsity


def schedule(config: ConfigDict, total_steps: int, warmup_steps: int) -> optax.Schedule:
    """The learning rate of every update.

    After a linear warm-up it is

    - `step`: multiplied by `decay_factor` at each milestone, a fraction of the whole run;
    - `cosine`: half a cosine from the peak to 0 at the end of the run;
    - `constant`.

    Args:
      config: the `optimizer` part of a run's config.
      total_steps: updates of the run.
      warmup_steps: updates before the peak is reached, fewer than total_steps.

    Returns:
      A function of the number of updates done so far.
    """
    peak = config.learning_rate
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


def create(config: ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Stochastic gradient descent; the order of its parts decides what they mean.

    clip → penalty → weight decay → momentum → learning rate → proximal

    Args:
      config: the `optimizer` part of a run's config.
      learning_rate: from `schedule`.

    Returns:
      The chain; its updates need the parameters.
    """
    chain = []
    if config.clip_norm:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.sparsity_mode == "sign":
        chain.append(add_sparsity_penalty(config.sparsity))
    mask = kernels if config.weight_decay_on == "kernels" else None
    chain += [
        optax.add_decayed_weights(config.weight_decay, mask),
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if config.sparsity_mode == "proximal":
        chain.append(proximal_sparsity(config.sparsity, learning_rate))
    return optax.chain(*chain)


def kernels(params: optax.Params) -> optax.Params:
    """True for the kernels of convolutions and linear layers, False for all else."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
