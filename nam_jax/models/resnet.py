"""Residual networks with attention on every residual branch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.typing import Dtype, Initializer

from nam_jax.attention.base import check_name, check_rank
from nam_jax.layers.batch_norm import AxisNames
from nam_jax.layers.convolution import window
from nam_jax.models import blocks

SHORTCUTS = ("projection", "pad_end", "pad_centre")


class _Block(nn.Module):
    """What both kinds of block share: fields and the shortcut."""

    features: int
    strides: int
    attention: blocks.Attention
    options: dict[str, Any]
    shortcut: str
    last_scale_init: Initializer
    drop_path: float = 0.0

    def _conv(self, features: int, kernel_size: int, strides: int = 1, *, name: str) -> nn.Conv:
        return blocks.conv(features, kernel_size, strides, dtype=self.options["dtype"], name=name)

    def _last_norm(self, y: jax.Array, norm_name: str) -> jax.Array:
        return blocks.norm_and_attention(
            y,
            self.attention,
            self.options,
            norm_name=norm_name,
            scale_init=self.last_scale_init,
        )

    def _shortcut(self, x: jax.Array, features: int) -> jax.Array:
        if self.strides == 1 and x.shape[-1] == features:
            return x
        if self.shortcut == "projection":
            x = self._conv(features, 1, self.strides, name="downsample_conv")(x)
            return blocks.batch_norm(self.options, name="downsample_bn")(x)
        x = window(x, (0, 0), x.shape[1:3], (self.strides, self.strides))
        zeros = features - x.shape[-1]
        before = {"pad_end": 0, "pad_centre": zeros // 2}[self.shortcut]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, zeros - before)))


class BasicBlock(_Block):
    """Two 3×3 convolutions, the first one strided, and a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Maps (N, H, W, C) to (N, H/strides, W/strides, features)."""
        y = self._conv(self.features, 3, self.strides, name="conv1")(x)
        y = nn.relu(blocks.batch_norm(self.options, name="bn1")(y))
        y = self._conv(self.features, 3, name="conv2")(y)
        y = self._last_norm(y, "bn2")
        y = blocks.drop(y, keys, self.drop_path)
        return blocks.relu(y + self._shortcut(x, self.features))


class Bottleneck(_Block):
    """A 1×1, a strided 3×3 and a 1×1 convolution, and a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Maps (N, H, W, C) to (N, H/strides, W/strides, 4 features)."""
        y = self._conv(self.features, 1, name="conv1")(x)
        y = nn.relu(blocks.batch_norm(self.options, name="bn1")(y))
        y = self._conv(self.features, 3, self.strides, name="conv2")(y)
        y = nn.relu(blocks.batch_norm(self.options, name="bn2")(y))
        y = self._conv(4 * self.features, 1, name="conv3")(y)
        y = self._last_norm(y, "bn3")
        y = blocks.drop(y, keys, self.drop_path)
        return blocks.relu(y + self._shortcut(x, 4 * self.features))


class ResNet(nn.Module):
    """A residual network with attention before every addition, or BAM between its stages.

    Modules are named as PyTorch's torchvision names them: `conv1`, `bn1`, `layer1_0` …
    `layer4_2` with `conv1`, `bn1`, …, `downsample_conv`, `downsample_bn`, and `fc`; the
    attention of a block is its child `attention`, the BAM after stage 1 `bam1`, and so on.

    Attributes:
      block: Class of the blocks, BasicBlock or Bottleneck.
      stage_sizes: Number of blocks of every stage; all stages but the first halve the
        resolution.
      num_classes: Number of logits.
      attention: Name of an attention, see `nam_jax.attention`.
      attention_options: Hyper-parameters of the attention, such as `{"gate_scale": 2.0}`.
      stem: First layers, `imagenet` (7×7 convolution and max-pool, each of stride 2) or `cifar`
        (3×3).
      width: Number of features of the first stage; every further stage doubles it.
      shortcut: Shortcut where the number of features changes: `projection`, a 1×1 convolution
        and a BatchNorm; or subsampling without parameters, with zero channels at the end
        (`pad_end`) or half of them on each side (`pad_centre`). The last two have the same
        parameters, and only weights trained with the one can tell it from the other.
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
      >>> model = nam_jax.models.create("resnet20", num_classes=10, attention="nam", stem="cifar")
      >>> init = lambda x: model.init_with_output(jax.random.key(0), x, train=False)
      >>> logits, variables = jax.eval_shape(init, jnp.ones((2, 32, 32, 3)))
      >>> logits.shape
      (2, 10)

    Source: K. He, X. Zhang, S. Ren and J. Sun, Deep Residual Learning for Image
    Recognition, 2015, https://arxiv.org/abs/1512.03385.
    """

    block: type[BasicBlock] | type[Bottleneck]
    stage_sizes: Sequence[int]
    num_classes: int
    attention: str = "none"
    attention_options: Mapping[str, Any] = FrozenDict()
    stem: str = "imagenet"
    width: int = 64
    shortcut: str = "projection"
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
        check_name("shortcut", self.shortcut, SHORTCUTS)
        options = blocks.shared_options(train=train, dtype=self.dtype, axis_name=self.axis_name)
        attention = blocks.Attention(self.attention, self.attention_options)
        x = self._stem(x, options)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        block = nn.remat(self.block) if self.remat else self.block
        keys = blocks.needed_keys(row_keys, x.shape[0], self.drop_path, self.dropout, train=train)
        rates = blocks.drop_rates(self.drop_path, sum(self.stage_sizes))
        number = 0
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                x = block(
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    attention=attention,
                    options=options,
                    shortcut=self.shortcut,
                    last_scale_init=zeros if self.zero_init_last_scale else ones,
                    drop_path=rates[number],
                    name=f"layer{stage + 1}_{index}",
                )(x, blocks.keys_of(keys, number))
                number += 1
            if stage + 1 < len(self.stage_sizes):
                x = blocks.between_stages(x, attention, options, name=f"bam{stage + 1}")
        return blocks.head(x, self.num_classes, blocks.keys_of(keys, number), self.dropout)

    def _stem(self, x: jax.Array, options: dict[str, Any]) -> jax.Array:
        large = self.stem == "imagenet"
        kernel_size, strides = (7, 2) if large else (3, 1)
        x = blocks.conv(self.width, kernel_size, strides, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(blocks.batch_norm(options, name="bn1")(x))
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))) if large else x
