"""Every field of a config: its type, its default, what it means, and what is allowed."""

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.layers.equations import NORMALIZATIONS, Normalization
from nam_jax.models.resnet import SHORTCUTS, STEMS
from train.core.config.optimizer_fields import OptimizerConfig
from train.core.config.spec import (
    Mark,
    Spec,
    above_zero,
    at_least_zero,
    between,
    choice,
    count,
    declared,
    fraction,
    numbers,
    switch,
    text,
)

Dtype = Literal["float32", "bfloat16", "float64"]
LoaderName = Literal["resident", "streaming"]
Crop = Literal["pad", "resized"]
Interpolation = Literal["bilinear", "bicubic", "area", "antialias"]
Augmentation = Literal["none", "randaugment", "randaugment_increasing", "trivialaugment"]
Loss = Literal["softmax", "sigmoid"]

# More threads than this the system may not start.
MOST_WORKERS = 1000
# The strengths of RandAugment's operations are 0 … LEVELS, as in its paper.
LEVELS = 30
# A name as TFDS has it: name, name/config or name:1.0.0.
DATASET_NAME = re.compile(r"[a-zA-Z]\w*(/\w[\w.+-]*)*(:\d+(\.\d+){2})?", re.ASCII)


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network."""

    name: str = choice("resnet50", models.NAMES, "the network")
    attention: str = choice("nam_channel", ATTENTIONS, "the attention of every block")
    normalization: Normalization = choice(
        "share",
        NORMALIZATIONS,
        "what NAM's weights are relative to: share, the sum of the scales, as in the paper; mean: "
        "their mean",
        marks=Mark.LATER,
    )
    gate_scale: float = above_zero(1.0, "factor of NAM's gates", 1000, marks=Mark.LATER)
    weight_gradient: bool = switch(
        False, "let gradients flow through NAM's weights", marks=Mark.LATER
    )
    stem: str = choice("imagenet", STEMS, "the first layers: 7×7 and max-pool, or 3×3")
    shortcut: str = declared(
        "",
        "shortcuts between a ResNet's stages: 1×1 convolutions, or zero channels at the end or on "
        "both sides; empty: pad_centre for resnet20 to resnet110, projection for the others",
        f"one of {', '.join(SHORTCUTS)}, or an empty text",
        lambda v: v in ("", *SHORTCUTS),
    )
    width: float = above_zero(
        1.0, "factor of the number of features, of mobilenet_v2 alone", 10, marks=Mark.LATER
    )
    dtype: Dtype = choice(
        "float32",
        get_args(Dtype),
        "type of the computation; parameters are float32, with float64 they are so too",
    )
    sync_bn_devices: int = declared(
        1,
        "devices that share batch statistics; 1: each its own, n: groups of n, -1: all",
        "-1 or 1 to 1,000,000",
        lambda v: v == -1 or 1 <= v <= 1_000_000,
        marks=Mark.EVALUATION,
    )
    pretrained: str = declared(
        "",
        "PyTorch weights to start from; empty: none",
        "a printable file's name, or an empty text",
        str.isprintable,
        marks=Mark.EVALUATION,
    )
    pretrained_key: str = declared(
        "",
        "which state dict of that file, such as model_ema or state.model; empty: it is found",
        "a printable text, or an empty one",
        str.isprintable,
        marks=Mark.EVALUATION | Mark.LATER,
    )
    remat: bool = switch(
        False, "less memory: compute blocks anew in the backward pass", marks=Mark.EVALUATION
    )
    zero_init_last_scale: bool = switch(False, "start every residual branch at zero")
    drop_path: float = fraction(
        0.0,
        "stochastic depth: probability that an image passes the last block's residual branch by; "
        "of the blocks before it is less, linearly, down to 0 for the first",
        marks=Mark.LATER,
    )
    dropout: float = fraction(
        0.0, "probability that a feature of an image is dropped before the classifier", Mark.LATER
    )


@dataclasses.dataclass(slots=True)
class DataConfig:
    """The images, and what is made of them."""

    name: str = declared(
        "cifar100",
        "`digits`, `folder` (of image files), or a TFDS image classification dataset",
        "a name such as cifar100, name/config or name:1.0.0",
        lambda v: DATASET_NAME.fullmatch(v) is not None,
    )
    dir: str = text(
        "~/tensorflow_datasets",
        "where TFDS datasets lie; of `folder` the one with DIR/<split>/<class>/<image>, or "
        "DIR/<class>/<image>",
        marks=Mark.FREE | Mark.LOCAL,
    )
    classes: str = declared(
        "",
        "file with a class a line, in the order of their numbers; empty: the folders' names, "
        "sorted; with `folder`",
        "a printable file's name, or an empty text",
        str.isprintable,
        marks=Mark.FREE | Mark.LOCAL | Mark.LATER,
    )
    eval_fraction: float = between(
        0.2,
        0.001,
        0.999,
        "share of the images that is held out as eval_split; with a `folder` without splits",
        marks=Mark.LATER,
    )
    train_split: str = text("train", "split to train on")
    eval_split: str = text("test", "split to evaluate on", marks=Mark.EVALUATION)
    loader: LoaderName = choice(
        "resident",
        get_args(LoaderName),
        "resident: the images lie on each device; streaming: threads read them from disk",
        marks=Mark.FREE,
    )
    resident_limit_gb: float = above_zero(
        4.0, "gigabytes that a split may take on a device", 1_000_000, marks=Mark.FREE
    )
    workers: int = count(
        0,
        0,
        "threads that read images; 0: as many as CPU cores",
        MOST_WORKERS,
        marks=Mark.FREE | Mark.LOCAL,
    )
    max_bad_fraction: float = fraction(
        0.001, "share of unreadable records that ends a run, from 10 of them on", marks=Mark.FREE
    )
    image_size: int = count(0, 0, "height and width in pixels; 0: the dataset's own", 4096)
    eval_image_size: int = count(
        0,
        0,
        "height and width in pixels of images that are evaluated; 0: those of training",
        4096,
        marks=Mark.EVALUATION | Mark.LATER,
    )
    crop: Crop = choice(
        "pad",
        get_args(Crop),
        "pad: whole images, padded and cut at random; resized: a random part of 8 to 100 % of the "
        "area (streaming only)",
    )
    eval_crop_ratio: float = between(
        0.875,
        0.1,
        1,
        "size of the evaluation's centre crop, of the short side; with the crop `resized`",
        marks=Mark.EVALUATION,
    )
    interpolation: Interpolation = choice(
        "bilinear",
        get_args(Interpolation),
        "interpolation of pixels, antialias: Pillow's and torchvision's bilinear; with the crop "
        "`resized`",
        marks=Mark.EVALUATION,
    )
    mean: tuple[float, ...] = numbers(
        (0.5,), "mean of each channel, of pixels in 0…1", "each from 0 to 1", lambda x: 0 <= x <= 1
    )
    std: tuple[float, ...] = numbers(
        (0.25,),
        "deviation of each channel, of pixels in 0…1",
        "each at least 0.001",
        lambda x: x >= 0.001,
    )
    crop_padding: int = count(
        4, 0, "zero pixels on each side, with the crop `pad`; at most the images' size", 4096
    )
    flip: bool = switch(True, "mirror images at random")
    augmentation: Augmentation = choice(
        "none",
        get_args(Augmentation),
        "random operations on every image (streaming only); randaugment_increasing: timm's `inc1`, "
        "of which every operation is left out with probability 1/2",
    )
    randaugment_operations: int = count(
        2, 1, "operations that RandAugment applies to an image", 100
    )
    randaugment_level: int = count(9, 0, "strength of RandAugment's operations", LEVELS)
    randaugment_std: float = at_least_zero(
        0.0, "standard deviation of that strength, which stays within 0 to 30", Mark.LATER
    )
    augment_repeats: int = count(
        1, 1, "rows of a batch that are made of the same image", 100, marks=Mark.LATER
    )
    random_erasing: float = between(
        0.0, 0, 1, "probability that a random box of an image is erased"
    )
    mixup: float = at_least_zero(0.0, "parameter of mixup's Beta distribution; 0: none")
    cutmix: float = at_least_zero(0.0, "parameter of CutMix's Beta distribution; 0: none")


@dataclasses.dataclass(slots=True)
class CheckpointConfig:
    """When a run is saved, and what is kept."""

    every_steps: int = count(0, 0, "steps between checkpoints; 0: one epoch's", marks=Mark.FREE)
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


# Fields of the model that are hyper-parameters of its attention.
HYPERPARAMETERS = ("normalization", "gate_scale", "weight_gradient")


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


def at_eval_size(data: DataConfig) -> DataConfig:
    """A copy of the `data` part of a config, with images of the size that is evaluated."""
    return dataclasses.replace(data, image_size=data.eval_image_size or data.image_size)


def reference() -> str:
    """All fields, a paragraph each: name and default, meaning, what is allowed."""
    return "\n".join(
        f"{name} = {spec.default!r}\n    {spec.doc}. Allowed: {spec.allowed}."
        for name, spec in FIELDS.items()
    )
