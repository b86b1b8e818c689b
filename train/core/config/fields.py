"""Every field of a config: its default, what is allowed, and what it means."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.models.resnet import STEMS
from nam_jax.torch_import import SUFFIXES

Config = ConfigDict

INTERPOLATIONS = ("bilinear", "bicubic", "area")
AUGMENTATIONS = ("none", "randaugment", "trivialaugment")
LEVELS = 30

# Updates are counted in 32 bits.
MOST_STEPS = 2**31 - 1
# More threads than this the system may not start.
MOST_WORKERS = 1000


@dataclasses.dataclass(frozen=True)
class Field:
    """One field.

    Attributes:
      default: also gives the field its type.
      doc: what it means.
      allowed: which values it may have.
      test: whether a value of the right type is one of them.
    """

    default: Any
    doc: str
    allowed: str
    test: Callable[[Any], bool] = lambda value: True


def _choice(default: str, names: tuple[str, ...], doc: str) -> Field:
    return Field(default, doc, f"one of {', '.join(names)}", lambda v: v in names)


def _count(default: int, low: int, doc: str, high: int = MOST_STEPS) -> Field:
    most = "2³¹ − 1" if high == MOST_STEPS else f"{high:,}"
    return Field(default, doc, f"{low} to {most}", lambda v: low <= v <= high)


def _at_least_zero(default: float, doc: str) -> Field:
    return Field(default, doc, "at least 0", lambda v: v >= 0)


def _above_zero(default: float, doc: str, high: float) -> Field:
    return Field(default, doc, f"above 0 and at most {high:,}", lambda v: 0 < v <= high)


def _fraction(default: float, doc: str) -> Field:
    return Field(default, doc, "at least 0 and below 1", lambda v: 0 <= v < 1)


def _switch(default: bool, doc: str) -> Field:
    return Field(default, doc, "True or False")


def _text(default: str, doc: str) -> Field:
    return Field(
        default,
        doc,
        "a text of printable characters, not empty",
        lambda v: v != "" and v.isprintable(),
    )


def _numbers(default: tuple[float, ...], doc: str, allowed: str, test: Callable) -> Field:
    return Field(default, doc, f"numbers, {allowed}", lambda v: len(v) > 0 and all(map(test, v)))


FIELDS: dict[str, Field] = {
    "seed": Field(
        0,
        "of initialisation, data order and augmentation",
        "0 to 2³² − 1",
        lambda v: 0 <= v < 2**32,
    ),
    "batch_size": _count(128, 1, "images of a step, over all devices", 2**20),
    "accumulate_steps": _count(
        1, 1, "parts of a batch that are taken one after another; each normalises by itself", 256
    ),
    "epochs": _count(200, 1, "passes over the training split"),
    "steps": _count(0, 0, "updates; 0: as many as the epochs have"),
    "eval_every_epochs": _count(1, 1, "epochs between evaluations"),
    "log_every_steps": _count(50, 1, "steps between log lines and rows of metrics.jsonl"),
    "label_smoothing": _fraction(0.0, "share of every label that is spread over all classes"),
    "ema_decay": _fraction(0.0, "of averaged weights, evaluated beside the others; 0: none"),
    "model.name": _choice("resnet50", models.NAMES, "the network"),
    "model.attention": _choice("nam_channel", ATTENTIONS, "the attention of every block"),
    "model.stem": _choice("imagenet", STEMS, "the first layers: 7×7 and max-pool, or 3×3"),
    "model.dtype": _choice(
        "float32",
        ("float32", "bfloat16", "float64"),
        "of the computation; parameters are float32, with float64 they are so too",
    ),
    "model.sync_bn_devices": Field(
        1,
        "devices that share batch statistics; 1: each its own, n: groups of n, -1: all",
        "-1 or 1 to 1,000,000",
        lambda v: v == -1 or 1 <= v <= 1_000_000,
    ),
    "model.pretrained": Field(
        "",
        "PyTorch weights to start from; empty: none",
        f"a printable file's name that ends in {', '.join(SUFFIXES)}, or an empty text",
        lambda v: v == "" or (v.lower().endswith(SUFFIXES) and v.isprintable()),
    ),
    "model.remat": _switch(False, "less memory: compute blocks anew in the backward pass"),
    "model.zero_init_last_scale": _switch(False, "start every residual branch at zero"),
    "data.name": Field(
        "cifar100",
        "`digits`, or a TFDS image classification dataset",
        "a name such as cifar100, name/config or name:1.0.0",
        lambda v: re.fullmatch(r"[a-zA-Z]\w*(/\w[\w.+-]*)*(:\d+(\.\d+){2})?", v, re.A) is not None,
    ),
    "data.dir": _text("~/tensorflow_datasets", "where TFDS datasets lie"),
    "data.train_split": _text("train", "split to train on"),
    "data.eval_split": _text("test", "split to evaluate on"),
    "data.loader": _choice(
        "resident",
        ("resident", "streaming"),
        "resident: the images lie on each device; streaming: threads read them from disk",
    ),
    "data.resident_limit_gb": _above_zero(
        4.0, "gigabytes that a split may take on a device", 1_000_000
    ),
    "data.workers": _count(0, 0, "threads that read images; 0: as many as CPU cores", MOST_WORKERS),
    "data.max_bad_fraction": _fraction(
        0.001, "share of unreadable records that ends a run, from 10 of them on"
    ),
    "data.image_size": _count(0, 0, "height and width in pixels; 0: the dataset's own", 4096),
    "data.crop": _choice(
        "pad",
        ("pad", "resized"),
        "pad: whole images, padded and cut at random; resized: a random part of 8 to 100 % of the "
        "area (streaming only)",
    ),
    "data.eval_crop_ratio": Field(
        0.875,
        "size of the evaluation's centre crop, of the short side; with the crop `resized`",
        "0.1 to 1",
        lambda v: 0.1 <= v <= 1,
    ),
    "data.interpolation": _choice(
        "bilinear", tuple(INTERPOLATIONS), "of pixels; with the crop `resized`"
    ),
    "data.mean": _numbers(
        (0.5,), "of each channel, of pixels in 0…1", "each from 0 to 1", lambda x: 0 <= x <= 1
    ),
    "data.std": _numbers(
        (0.25,),
        "of each channel, of pixels in 0…1",
        "each at least 0.001",
        lambda x: x >= 0.001,
    ),
    "data.crop_padding": _count(
        4, 0, "zero pixels on each side, with the crop `pad`; at most the images' size", 4096
    ),
    "data.flip": _switch(True, "mirror images at random"),
    "data.augmentation": _choice(
        "none", AUGMENTATIONS, "random operations on every image (streaming only)"
    ),
    "data.randaugment_operations": _count(2, 1, "that RandAugment applies to an image", 100),
    "data.randaugment_level": Field(
        9, "strength of RandAugment's operations", f"0 to {LEVELS}", lambda v: 0 <= v <= LEVELS
    ),
    "data.random_erasing": Field(
        0.0,
        "probability that a random box of an image is erased",
        "0 to 1",
        lambda v: 0 <= v <= 1,
    ),
    "data.mixup": _at_least_zero(0.0, "parameter of mixup's Beta distribution; 0: none"),
    "data.cutmix": _at_least_zero(0.0, "parameter of CutMix's Beta distribution; 0: none"),
    "optimizer.name": _choice(
        "sgd", ("sgd", "lars"), "sgd: with momentum; lars: for batches of thousands"
    ),
    "optimizer.learning_rate": Field(
        0.1, "the highest of the schedule", "above 0", lambda v: v > 0
    ),
    "optimizer.reference_batch_size": _count(
        0, 0, "batch size that the learning rate is for; other sizes scale it; 0: none does"
    ),
    "optimizer.schedule": _choice(
        "step", ("step", "cosine", "constant"), "of the learning rate, after the warm-up"
    ),
    "optimizer.warmup_epochs": _at_least_zero(0.0, "epochs of linear growth to the learning rate"),
    "optimizer.milestones": Field(
        (0.3, 0.6, 0.8),
        "where the schedule `step` drops the learning rate, as fractions of the run",
        "at most 100 numbers, increasing, each above 0 and below 1",
        lambda v: len(v) <= 100 and list(v) == sorted(set(v)) and all(0 < x < 1 for x in v),
    ),
    "optimizer.decay_factor": _above_zero(0.2, "of the learning rate at each milestone", 1),
    "optimizer.momentum": _fraction(0.9, "decay of the summed gradients"),
    "optimizer.nesterov": _switch(False, "momentum as Nesterov's"),
    "optimizer.weight_decay": _at_least_zero(5e-4, "added to the gradients, times the parameters"),
    "optimizer.weight_decay_on": _choice(
        "all", ("all", "kernels"), "all: every parameter; kernels: not BatchNorms and biases"
    ),
    "optimizer.clip_norm": _at_least_zero(0.0, "largest norm of the gradients; 0: any"),
    "optimizer.sparsity": _at_least_zero(0.0, "p of the penalty on NAM's scales"),
    "optimizer.sparsity_mode": _choice(
        "sign", ("sign", "proximal"), "sign: in the gradient; proximal: soft threshold"
    ),
    "checkpoint.every_steps": _count(0, 0, "steps between checkpoints; 0: one epoch's"),
    "checkpoint.keep": _count(2, 2, "latest checkpoints to keep"),
}


# A run may go on with other values of these: they change what is seen of it, not its numbers.
FREE_FIELDS = (
    "log_every_steps",
    "data.dir",
    "data.loader",
    "data.resident_limit_gb",
    "data.workers",
    "data.max_bad_fraction",
    "checkpoint.every_steps",
    "checkpoint.keep",
)


# These may differ from process to process.
LOCAL_FIELDS = ("data.dir", "data.workers")


# Nor do these change what a checkpoint means.
EVALUATION_FREE_FIELDS = (
    *FREE_FIELDS,
    "accumulate_steps",
    "batch_size",
    "data.eval_split",
    "model.pretrained",
    "model.remat",
    "data.eval_crop_ratio",
    "model.sync_bn_devices",
)


def default_config() -> ConfigDict:
    """All fields at their defaults; a config file changes what differs."""
    config = ConfigDict()
    for name, field in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        (config[group] if group else config)[leaf] = field.default
    return config.lock()


def flatten(config: ConfigDict) -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and the value of every field."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from ((f"{name}.{leaf}", inner) for leaf, inner in flatten(value))
        else:
            yield name, value


def reference() -> str:
    """All fields, a paragraph each: name and default, meaning, what is allowed."""
    return "\n".join(
        f"{name} = {field.default!r}\n    {field.doc}. Allowed: {field.allowed}."
        for name, field in FIELDS.items()
    )
