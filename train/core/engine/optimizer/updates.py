"""The optimizers by name: from gradients to updates."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import optax

from train.core.config.optimizer_fields import OptimizerConfig, OptimizerName

Chain = list[optax.GradientTransformation]


def _sgd(config: OptimizerConfig, learning_rate: optax.Schedule) -> Chain:
    return [
        optax.add_decayed_weights(config.weight_decay, _decayed(config)),
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(learning_rate),
    ]


def _lars(config: OptimizerConfig, learning_rate: optax.Schedule) -> Chain:
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


def _adamw(config: OptimizerConfig, learning_rate: optax.Schedule) -> Chain:
    return [
        optax.adamw(
            learning_rate,
            *config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=_decayed(config),
            nesterov=config.nesterov,
        )
    ]


def _lamb(config: OptimizerConfig, learning_rate: optax.Schedule) -> Chain:
    # That of optax has a trust ratio for every parameter.
    return [
        optax.scale_by_adam(*config.betas, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, _decayed(config)),
        optax.masked(optax.scale_by_trust_ratio(), kernels),
        optax.scale_by_learning_rate(learning_rate),
    ]


def _muon(config: OptimizerConfig, learning_rate: optax.Schedule) -> Chain:
    beta1, beta2 = config.betas
    return [
        optax.contrib.muon(
            learning_rate,
            beta=config.momentum,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
            adam_b1=beta1,
            adam_b2=beta2,
            adam_weight_decay=config.weight_decay if config.weight_decay_on == "all" else 0.0,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    ]


class Optimizer(NamedTuple):
    """An optimizer.

    Attributes:
      updates: Function that gives its part of the chain.
      moves_scales_by: What becomes of a gradient of NAM's scales: momentum repeats it, Adam
        divides it. The penalty's proximal mode follows it.
    """

    updates: Callable[[OptimizerConfig, optax.Schedule], Chain]
    moves_scales_by: Literal["momentum", "adam"]


OPTIMIZERS: dict[OptimizerName, Optimizer] = {
    "sgd": Optimizer(_sgd, "momentum"),
    "lars": Optimizer(_lars, "momentum"),
    "adamw": Optimizer(_adamw, "adam"),
    "lamb": Optimizer(_lamb, "adam"),
    "muon": Optimizer(_muon, "adam"),
}


def kernels(params: optax.Params) -> optax.Params:
    """True for the kernels of convolutions and linear layers, False for all else."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_kernel(path), params)


def _is_kernel(path: tuple[Any, ...]) -> bool:
    return getattr(path[-1], "key", None) == "kernel"


def _decayed(config: OptimizerConfig) -> Callable[[optax.Params], optax.Params] | None:
    """The mask of what decays; None: everything."""
    return kernels if config.weight_decay_on == "kernels" else None


def _matrices(params: optax.Params) -> optax.Params:
    """Which axes of a kernel (…, inputs, outputs) are those of a matrix; None for all else."""

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if not _is_kernel(path):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)
