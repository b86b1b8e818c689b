"""ResNets with NAM in PyTorch: what `nam_jax.models.resnet` computes.

From K. He et al. 2015, https://arxiv.org/abs/1512.03385, with the attention before the addition.
Submodules are called as in torchvision, and as `nam_jax.torch_import` reads them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.nam import NAM

ATTENTIONS: dict[str, dict[str, bool] | None] = {
    "none": None,
    "nam_channel": {"spatial": False},
    "nam_spatial": {"channel": False},
    "nam": {},
}


def conv(inputs: int, outputs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded on every side by half its kernel."""
    padding = (kernel_size - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel_size, stride, padding, bias=False)


class Block(nn.Module):
    """A residual branch of convolutions, its attention, and a shortcut."""

    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        attention: str,
        size: int,
        *,
        bottleneck: bool,
        projection: bool,
    ):
        """Makes the block.

        Args:
          inputs: Number of channels of the input.
          features: Number of features of the inner convolutions.
          stride: Stride of the block.
          attention: Name of the attention, one of ATTENTIONS.
          size: Height and width of the output, in pixels.
          bottleneck: Whether it has 1×1, 3×3 and 1×1 convolutions, and not two of 3×3.
          projection: Whether the shortcut is a convolution where the shape changes, and not
            subsampling with half of the channels that it lacks, as zeros, on each side.
        """
        super().__init__()
        self.outputs = 4 * features if bottleneck else features
        self.stride = stride
        kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        channels = [inputs, *[features] * (len(kernels) - 1), self.outputs]
        self.depth = len(kernels)
        for i, (kernel_size, step) in enumerate(kernels, 1):
            self.add_module(f"conv{i}", conv(channels[i - 1], channels[i], kernel_size, step))
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels[i]))
        if projection and (stride > 1 or inputs != self.outputs):
            shortcut = conv(inputs, self.outputs, 1, stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(self.outputs))
        options = ATTENTIONS[attention]
        self.nam = nn.Identity() if options is None else NAM(self.outputs, size, size, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            y = torch.relu(y) if i < self.depth else y
        return torch.relu(self.nam(y) + self._shortcut(x))

    def _shortcut(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "downsample"):
            return self.downsample(x)
        if self.stride == 1 and x.shape[1] == self.outputs:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        zeros = self.outputs - x.shape[1]
        before = zeros // 2
        return functional.pad(x, (0, 0, 0, 0, before, zeros - before))


class ResNet(nn.Module):
    """A residual network."""

    def __init__(
        self,
        stage_sizes: Sequence[int],
        *,
        bottleneck: bool,
        num_classes: int,
        image_shape: tuple[int, int, int],
        attention: str = "none",
        stem: str = "imagenet",
        width: int = 64,
        projection: bool = True,
    ):
        """Makes the network.

        Args:
          stage_sizes: Number of blocks of every stage.
          bottleneck: Whether the blocks have 1×1, 3×3 and 1×1 convolutions, and not two of 3×3.
          num_classes: Number of logits.
          image_shape: Shape of the images, (H, W, channels) with H = W.
          attention: Name of the attention, one of ATTENTIONS.
          stem: First layers, `imagenet` or `cifar`.
          width: Number of features of the first stage.
          projection: Whether shortcuts between stages are convolutions.
        """
        super().__init__()
        size, _, channels = image_shape
        large = stem == "imagenet"
        self.conv1 = conv(channels, width, 7, 2) if large else conv(channels, width, 3)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        size = -(-size // 4) if large else size
        inputs, self.stages = width, len(stage_sizes)
        for stage, count in enumerate(stage_sizes):
            blocks = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                size = -(-size // stride)
                kind = {"bottleneck": bottleneck, "projection": projection}
                block = Block(inputs, width * 2**stage, stride, attention, size, **kind)
                blocks.append(block)
                inputs = block.outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classifies (N, channels, H, W)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


_MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"stage_sizes": (2, 2, 2, 2), "bottleneck": False},
    "resnet50": {"stage_sizes": (3, 4, 6, 3), "bottleneck": True},
    "resnet20": {"stage_sizes": (3, 3, 3), "bottleneck": False, "width": 16, "projection": False},
}

NAMES = tuple(_MODELS)


def create(name: str, **options: Any) -> ResNet:
    """Builds a network by its name: `resnet18`, `resnet50` or `resnet20`.

    Args:
      name: Name of the network.
      **options: Further arguments of ResNet.
    """
    return ResNet(**{**_MODELS[name], **options})
