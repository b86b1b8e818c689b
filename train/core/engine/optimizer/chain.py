"""The optax chain: what an optimizer does, and where the penalty comes in."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nam_jax import add_sparsity_penalty, proximal_sparsity
from nam_jax.sparsity import NAM_SCALES, map_scales, soft_threshold
from train.core.config.optimizer_fields import OptimizerConfig
from train.core.engine.optimizer.updates import OPTIMIZERS


def create(config: OptimizerConfig, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """The optax chain; the order of its parts decides what they mean.

    sgd:   clip → penalty → weight decay → momentum → learning rate → proximal
    lars:  clip → penalty → weight decay → trust ratio → learning rate → momentum → proximal
    adamw: clip → penalty → Adam → weight decay → learning rate → proximal
    lamb:  clip → penalty → Adam → weight decay → trust ratio → learning rate → proximal
    muon:  as adamw, but that kernels, as matrices (inputs of a sum, outputs), take the orthogonal
           part of their momentum, √max(inputs, outputs) · 0.2 long, in place of Adam's direction

    The trust ratio, of the norm of a parameter to that of its direction, is of kernels only, and
    with lars so is weight decay. Muon's factor makes its updates as long as Adam's, so that one
    learning rate is right for both.

    The penalty's two modes have one minimum, the loss plus p Σ|scale|'s, with every optimizer:

    - `sign` adds p sign(scale) to the gradient, before anything divides or repeats it.
    - `proximal` lowers |scale| by p times what the chain multiplies a gradient by, in all. Momentum
      repeats one 1 / (1 − momentum) times: with sgd and lars that is p η / (1 − momentum). Adam
      divides by the root of the average square v̂ and repeats nothing: with adamw, lamb and muon it
      is p η / (√v̂ + ε), for each scale its own.

    Args:
      config: The `optimizer` part of a run's config.
      learning_rate: Learning rate of every update, from `schedule`.

    Returns:
      The chain; its updates need the parameters.

    Source: Y. You, I. Gitman and B. Ginsburg, Large Batch Training of Convolutional Networks, 2017,
    https://arxiv.org/abs/1708.03888; I. Loshchilov and F. Hutter, Decoupled Weight Decay
    Regularization, 2017, https://arxiv.org/abs/1711.05101; Y. You et al., Large Batch Optimization
    for Deep Learning (LAMB), 2019, https://arxiv.org/abs/1904.00962; K. Jordan et al., Muon, 2024,
    https://kellerjordan.github.io/posts/muon; J. Liu et al., Muon is Scalable for LLM Training
    (the factor), 2025, https://arxiv.org/abs/2502.16982; J. Yun, A. Lozano and E. Yang, Adaptive
    Proximal Gradient Methods for Structured Neural Networks, NeurIPS 2021 (the threshold).
    """
    chain, optimizer = [], OPTIMIZERS[config.name]
    if config.clip_norm:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.sparsity_mode == "sign":
        chain.append(add_sparsity_penalty(config.sparsity))
    chain += optimizer.updates(config, learning_rate)
    if config.sparsity_mode == "sign":
        return optax.chain(*chain)
    if optimizer.moves_scales_by == "momentum":
        total = 1 / (1 - config.momentum)
        proximal = proximal_sparsity(config.sparsity, lambda step: total * learning_rate(step))
        return optax.chain(*chain, proximal)
    return _proximal_adam(optax.chain(*chain), config, learning_rate)


def _proximal_adam(
    chain: optax.GradientTransformation, config: OptimizerConfig, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
    """Ends a chain, in which Adam moves NAM's scales, with the proximal step of the penalty."""
    checked = proximal_sparsity(config.sparsity, learning_rate)

    def init(params: optax.Params) -> optax.OptState:
        # A penalty that would find no scale is refused.
        checked.init(params)
        return chain.init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = chain.update(updates, state, params)
        adam: Any = optax.tree.get(state, "ScaleByAdamState")
        strength = config.sparsity * learning_rate(adam.count - 1)
        correction = 1 - config.betas[1] ** adam.count

        def shrink(u: jax.Array, scale: jax.Array, square: jax.Array) -> jax.Array:
            root = jnp.sqrt(square / correction)
            return soft_threshold(u, scale, strength / (root + config.epsilon))

        return map_scales(shrink, NAM_SCALES, updates, params, adam.nu), state

    return optax.GradientTransformation(init, update)
