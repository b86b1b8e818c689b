"""NAM in PyTorch, from equations 1 to 3 of https://arxiv.org/abs/2111.12419.

What `nam_jax.layers.equations` computes, for (N, C, H, W) tensors, which may be channels_last in
memory. The submodules are called as `nam_jax.torch_import` reads them.
"""

import torch
from torch import nn


def attention_weights(scale: torch.Tensor) -> torch.Tensor:
    """W = |scale| / Σ|scale|, without a gradient."""
    magnitudes = scale.detach().abs()
    return magnitudes / magnitudes.sum()


class ChannelNAM(nn.Module):
    """Equation 2: sigmoid(W_γ BN(x)) x, with a scale per channel."""

    def __init__(self, channels: int):
        """Makes the BatchNorm of so many channels."""
        super().__init__()
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gates x."""
        weights = attention_weights(self.bn2.weight)[:, None, None]
        return x * torch.sigmoid(weights * self.bn2(x))


class SpatialNAM(nn.Module):
    """Equation 3: sigmoid(W_λ BN_s(x)) x, with a scale per pixel."""

    def __init__(self, height: int, width: int):
        """Makes the BatchNorm of so many pixels."""
        super().__init__()
        self.bn = nn.BatchNorm1d(height * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gates x."""
        weights = attention_weights(self.bn.weight)
        # (N, H·W, C): to the BatchNorm, pixels are the channels. A view of channels_last memory.
        normalised = self.bn(x.flatten(2).transpose(1, 2))
        gate = torch.sigmoid(weights[:, None] * normalised)
        return x * gate.transpose(1, 2).unflatten(2, x.shape[2:])


class NAM(nn.Module):
    """Channel attention, then spatial attention; either part can be left out."""

    def __init__(
        self, channels: int, height: int, width: int, channel: bool = True, spatial: bool = True
    ):
        """Makes the parts for maps of one size."""
        super().__init__()
        if channel:
            self.Channel_Att = ChannelNAM(channels)
        if spatial:
            self.Spatial_Att = SpatialNAM(height, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gates x."""
        for part in self.children():
            x = part(x)
        return x
