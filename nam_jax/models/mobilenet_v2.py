"""MobileNetV2 with attention after the last BatchNorm of every block."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.core import FrozenDict
from flax.typing import Dtype

from nam_jax.attention.base import check_name, check_rank
from nam_jax.layers.batch_norm import AxisNames
from nam_jax.models import blocks


class Stage(NamedTuple):
    """A row of table 2 of the paper: blocks with the same expansion and features."""

    expansion: int
    features: int
    num_blocks: int
    strides: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


def scaled_features(features: int, width_multiplier: float) -> int:
    """Features of a wider or narrower network: the nearest multiple of 8, never 10 % less.

    Args:
      features: Number of features in the network of width 1.
      width_multiplier: Factor of the number of features, above 0.

    Raises:
      ValueError: width_multiplier is not above 0.
    """
    if width_multiplier <= 0:
        raise ValueError(f"width_multiplier has to be above 0; got {width_multiplier}.")
    wanted = features * width_multiplier
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


class InvertedResidual(nn.Module):
    """A 1×1 expansion, a depthwise 3×3 convolution and a 1×1 projection without ReLU.

    The input is added where it has the shape of the output.

    Attributes:
      features: Number of features of the output.
      strides: Stride of the depthwise convolution, in pixels.
      expansion: Number of features inside for every channel of the input; 1: no expansion.
      attention: Attention after the projection's BatchNorm.
      options: Fields from `blocks.shared_options`.
      zero_init_last_scale: Whether the branch starts at zero where the input is added.
      drop_path: Probability that an image passes the branch by, where the input is added.
    """

    features: int
    strides: int
    expansion: int
    attention: blocks.Attention
    options: dict[str, Any]
    zero_init_last_scale: bool
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Maps (N, H, W, C) to (N, H/strides, W/strides, features)."""
        hidden = x.shape[-1] * self.expansion
        y = _layer(x, hidden, 1, self.options, name="expand") if self.expansion > 1 else x
        y = _layer(
            y, hidden, 3, self.options, name="depthwise", strides=self.strides, groups=hidden
        )
        y = blocks.conv(self.features, 1, dtype=self.options["dtype"], name="project_conv")(y)
        is_residual = self.strides == 1 and x.shape[-1] == self.features
        zero = is_residual and self.zero_init_last_scale
        y = blocks.norm_and_attention(
            y,
            self.attention,
            self.options,
            norm_name="project_bn",
            scale_init=nn.initializers.zeros if zero else nn.initializers.ones,
        )
        return x + blocks.drop(y, keys, self.drop_path) if is_residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 with attention in all 17 blocks, or BAM where the resolution drops.

    The children are `stem_conv` and `stem_bn`; `block1` … `block17` with `expand_conv`,
    `expand_bn`, `depthwise_conv`, …, `project_bn` and `attention`; `bam3` after block 3, and
    so on; `last_conv`, `last_bn`; and `fc`.

    Attributes:
      num_classes: Number of logits.
      attention: Name of an attention, see `nam_jax.attention`.
      attention_options: Hyper-parameters of the attention, such as `{"gate_scale": 2.0}`.
      stem: First layers, `imagenet`, which divides the resolution by 32, or `cifar`, which
        divides it by 8: the first convolution and the first blocks with 24 features have stride 1.
      width_multiplier: Factor of the number of features of all layers, above 0; the last
        never has less than 1280.
      zero_init_last_scale: Whether every residual branch starts at zero, through the scale of
        its last BatchNorm (P. Goyal et al. 2017, https://arxiv.org/abs/1706.02677).
      remat: Whether the inside of every block is computed anew in the backward pass, in place
        of being kept: less memory for more computation.
      drop_path: Stochastic depth: probability in training that an image passes the last block's
        residual branch by; of the blocks before it is less, linearly, down to 0 for the first.
      dropout: Probability in training that a feature is dropped before the classifier.
      dtype: Dtype of the computation (default: inferred); pooling and classifier are at least
        float32.
      axis_name: Mapped axis (or axes) of devices that share their batch statistics.

    Example:
      >>> import jax, jax.numpy as jnp, nam_jax
      >>> model = nam_jax.models.create(
      ...     "mobilenet_v2", num_classes=10, attention="nam", stem="cifar", width_multiplier=0.25
      ... )
      >>> images = jnp.ones((2, 32, 32, 3))
      >>> shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
      >>> shapes["params"]["block17"]["attention"]["channel"]["nam_bn"]["scale"].shape
      (80,)

    Source: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov and L.-C. Chen, MobileNetV2: Inverted
    Residuals and Linear Bottlenecks, 2018, https://arxiv.org/abs/1801.04381, section 4.
    """

    num_classes: int
    attention: str = "none"
    attention_options: Mapping[str, Any] = FrozenDict()
    stem: str = "imagenet"
    width_multiplier: float = 1.0
    zero_init_last_scale: bool = False
    remat: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    dtype: Dtype | None = None
    axis_name: AxisNames | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, row_keys: jax.Array | None = None) -> jax.Array:
        """Classifies images.

        Args:
          x: Normalised images (N, H, W, channels).
          train: Whether to normalise with the statistics of the batch and update the running
            ones.
          row_keys: Random key of every image, (N,), for `drop_path` and `dropout` in training; what
            is dropped for an image depends on its key alone.

        Returns:
          Logits (N, num_classes), at least float32.

        Raises:
          ValueError: a field is not as above, x has other axes, or something is to be dropped, and
            there is not one key for every image.
        """
        check_rank(self, x)
        check_name("stem", self.stem, blocks.STEMS)
        options = blocks.shared_options(train=train, dtype=self.dtype, axis_name=self.axis_name)
        attention = blocks.Attention(self.attention, self.attention_options)
        strides = 2 if self.stem == "imagenet" else 1
        stem_features = scaled_features(32, self.width_multiplier)
        x = _layer(x, stem_features, 3, options, name="stem", strides=strides)
        block = nn.remat(InvertedResidual) if self.remat else InvertedResidual
        keys = blocks.needed_keys(row_keys, x.shape[0], self.drop_path, self.dropout, train=train)
        rates = blocks.drop_rates(self.drop_path, len(list(self._blocks())))
        for number, (expansion, features, strides) in enumerate(self._blocks(), start=1):
            if strides > 1:
                x = blocks.between_stages(x, attention, options, name=f"bam{number - 1}")
            x = block(
                scaled_features(features, self.width_multiplier),
                strides,
                expansion,
                attention,
                options,
                self.zero_init_last_scale,
                drop_path=rates[number - 1],
                name=f"block{number}",
            )(x, blocks.keys_of(keys, number))
        last_features = scaled_features(1280, max(1.0, self.width_multiplier))
        x = _layer(x, last_features, 1, options, name="last")
        return blocks.head(x, self.num_classes, blocks.keys_of(keys, 0), self.dropout)

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yields expansion, features and strides of every block."""
        for stage in STAGES:
            for index in range(stage.num_blocks):
                keeps = index > 0 or (self.stem == "cifar" and stage.features == 24)
                yield stage.expansion, stage.features, 1 if keeps else stage.strides


def _layer(
    x: jax.Array,
    features: int,
    kernel_size: int,
    options: dict[str, Any],
    *,
    name: str,
    strides: int = 1,
    groups: int = 1,
) -> jax.Array:
    """A convolution, BatchNorm and ReLU6: the children `<name>_conv` and `<name>_bn`."""
    x = blocks.conv(
        features,
        kernel_size,
        strides,
        groups=groups,
        dtype=options["dtype"],
        name=f"{name}_conv",
    )(x)
    return nn.relu6(blocks.batch_norm(options, name=f"{name}_bn")(x))
