"""Every field of a config: its type, its default, what it means, and what is allowed.

Those of the network, the images and the optimizer are in files of their own beside this one.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from train.core.config.data_fields import DataConfig
from train.core.config.model_fields import ModelConfig
from train.core.config.optimizer_fields import OptimizerConfig
from train.core.config.spec import (
    Mark,
    Spec,
    choice,
    count,
    declared,
    fraction,
)

Loss = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(slots=True)
class CheckpointConfig:
    """When a run is saved, and what is kept."""

    every_steps: int = count(
        0,
        0,
        "steps between checkpoints; 0: one epoch's; each evaluation saves too",
        marks=Mark.FREE,
    )
    keep: int = count(2, 2, "latest checkpoints to keep", marks=Mark.FREE)


@dataclasses.dataclass(slots=True)
class LogConfig:
    """Where else the rows of metrics.jsonl go."""

    wandb_project: str = declared(
        "",
        "project of Weights & Biases that gets rows, config, environment and summary; empty: none",
        "at most 128 printable characters, none of / \\ # ? % :",
        lambda v: v.isprintable() and len(v) <= 128 and not set(v) & set("/\\#?%:"),
        marks=Mark.FREE | Mark.LATER,
    )


@dataclasses.dataclass(slots=True)
class Config:
    """All of a run's config."""

    seed: int = declared(
        0,
        "seed of initialisation, data order and augmentation",
        "0 to 2³² − 1",
        lambda v: 0 <= v < 2**32,
    )
    batch_size: int = count(
        128, 1, "images of a step, over all devices", 2**20, marks=Mark.EVALUATION
    )
    accumulate_steps: int = count(
        1,
        1,
        "parts of a batch that are taken one after another; each normalises by itself",
        256,
        marks=Mark.EVALUATION,
    )
    epochs: int = count(200, 1, "passes over the training split")
    steps: int = count(0, 0, "updates; 0: as many as the epochs have")
    eval_every_epochs: int = count(1, 1, "epochs between evaluations")
    log_every_steps: int = count(
        50, 1, "steps between log lines and rows of metrics.jsonl", marks=Mark.FREE
    )
    loss: Loss = choice(
        "softmax",
        get_args(Loss),
        "softmax: cross-entropy; sigmoid: binary cross-entropy, the mean over all classes",
        Mark.LATER,
    )
    loss_threshold: float = fraction(
        0.0,
        "smoothed and mixed targets above it are 1, the others 0; 0: as they are; with `sigmoid`",
        Mark.LATER,
    )
    label_smoothing: float = fraction(0.0, "share of every label that is spread over all classes")
    ema_decay: float = fraction(
        0.0,
        "highest decay rate of averaged weights, evaluated beside the others; after t updates "
        "it is (1 + t) / (10 + t) where that is less; 0: none",
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)


def default_config() -> Config:
    """All fields at their defaults; a config file changes what differs."""
    return Config()


def flatten(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every field of a config, or of a part of one.

    A config file is code: of a part something else may be made, and a field be deleted.
    """
    for part in dataclasses.fields(config):
        value = getattr(config, part.name, dataclasses.MISSING)
        if "spec" not in part.metadata and type(value) is part.type:
            yield from ((f"{part.name}.{leaf}", inner) for leaf, inner in flatten(value))
        elif value is not dataclasses.MISSING:
            yield part.name, value


def _specs(part: Any, prefix: str = "") -> Iterator[tuple[str, Spec]]:
    for field in dataclasses.fields(part):
        if "spec" in field.metadata:
            yield prefix + field.name, field.metadata["spec"]
        else:
            yield from _specs(getattr(part, field.name), f"{field.name}.")


FIELDS: dict[str, Spec] = dict(_specs(Config()))


def marked(marks: Mark) -> frozenset[str]:
    """The names of the fields that have one of the marks."""
    return frozenset(name for name, spec in FIELDS.items() if spec.marks & marks)


def replaced(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of a config with other values.

    Args:
      config: Config to be copied; it stays as it is.
      changes: New values by the dotted names of their fields.
    """
    config = copy.deepcopy(config)
    for name, value in changes.items():
        part, _, leaf = name.rpartition(".")
        setattr(getattr(config, part) if part else config, leaf, value)
    return config


def reference() -> str:
    """All fields, a paragraph each: name and default, meaning, what is allowed."""
    return "\n".join(
        f"{name} = {spec.default!r}\n    {spec.doc}. Allowed: {spec.values}."
        for name, spec in FIELDS.items()
    )
