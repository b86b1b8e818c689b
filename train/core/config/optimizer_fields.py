"""The fields of a config that are about the optimizer."""

import dataclasses
from typing import Literal, get_args

from train.core.config.spec import (
    Mark,
    above_zero,
    at_least_zero,
    choice,
    count,
    declared,
    fraction,
    switch,
)

OptimizerName = Literal["sgd", "lars", "adamw", "lamb", "muon"]
Schedule = Literal["step", "cosine", "exponential", "constant"]
WeightDecayOn = Literal["all", "kernels"]
SparsityMode = Literal["sign", "proximal"]


@dataclasses.dataclass(slots=True)
class OptimizerConfig:
    """The optax chain."""

    name: OptimizerName = choice(
        "sgd",
        get_args(OptimizerName),
        "sgd: with momentum; lars, lamb: for batches of thousands, after sgd and adamw; muon: "
        "orthogonal updates of kernels, and adamw's of all else",
    )
    learning_rate: float = declared(0.1, "highest rate of the schedule", "above 0", lambda v: v > 0)
    reference_batch_size: int = count(
        0, 0, "batch size that the learning rate is for; other sizes scale it; 0: it is not scaled"
    )
    schedule: Schedule = choice(
        "step",
        get_args(Schedule),
        "course of the learning rate after the warm-up: step, down at milestones; cosine, to 0; "
        "exponential, by a factor after every epoch; constant",
    )
    warmup_epochs: float = at_least_zero(0.0, "epochs of linear growth to the learning rate")
    milestones: tuple[float, ...] = declared(
        (0.3, 0.6, 0.8),
        "where the schedule `step` drops the learning rate, as fractions of the run",
        "at most 100 numbers, increasing, each above 0 and below 1",
        lambda v: len(v) <= 100 and list(v) == sorted(set(v)) and all(0 < x < 1 for x in v),
    )
    decay_factor: float = above_zero(
        0.2, "factor of the learning rate at each milestone; of `exponential` after every epoch", 1
    )
    momentum: float = fraction(0.9, "decay of the summed gradients; of sgd, lars and muon")
    nesterov: bool = switch(False, "momentum as Nesterov's; not of lamb")
    betas: tuple[float, ...] = declared(
        (0.9, 0.999),
        "decay of the averages of gradients and of their squares; of adamw, lamb and muon",
        "two numbers, each at least 0 and below 1",
        lambda v: len(v) == 2 and all(0 <= x < 1 for x in v),
        marks=Mark.LATER,
    )
    epsilon: float = above_zero(
        1e-8,
        "added to the root of the average square; of adamw, lamb and muon",
        1,
        marks=Mark.LATER,
    )
    weight_decay: float = at_least_zero(
        5e-4,
        "of sgd and lars added to the gradients, times the parameters; of the others to their "
        "directions",
    )
    weight_decay_on: WeightDecayOn = choice(
        "all", get_args(WeightDecayOn), "all: every parameter; kernels: not BatchNorms and biases"
    )
    clip_norm: float = at_least_zero(0.0, "largest norm of the gradients; 0: any")
    sparsity: float = at_least_zero(0.0, "p of the penalty p · Σ|scale| on NAM's scales")
    sparsity_mode: SparsityMode = choice(
        "sign", get_args(SparsityMode), "sign: in the gradient; proximal: soft threshold"
    )
