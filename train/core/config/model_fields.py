"""The fields of a config that are about the network."""

import dataclasses
from typing import Literal, get_args

from nam_jax import models
from nam_jax.attention import NAMES as ATTENTIONS
from nam_jax.attention import hyperparameters
from nam_jax.layers.equations import NORMALIZATIONS, Normalization
from nam_jax.models.blocks import STEMS, Stem
from nam_jax.models.resnet import SHORTCUTS
from train.core.config.spec import (
    Mark,
    above_zero,
    choice,
    declared,
    fraction,
    switch,
)

Dtype = Literal["float32", "bfloat16", "float64"]


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
    stem: Stem = choice(
        "imagenet", STEMS, "the first layers: imagenet, 7×7 and max-pool; cifar, 3×3"
    )
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
        "type of the computation; parameters are float32, or float64 with float64",
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


# The fields that are hyper-parameters of an attention.
HYPERPARAMETERS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if any(field.name in hyperparameters(name) for name in ATTENTIONS)
)
