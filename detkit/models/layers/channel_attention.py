"""Channel attention of RTMDet, Lyu et al., https://arxiv.org/abs/2212.07784; after squeeze and excitation,
https://arxiv.org/abs/1709.01507, with one layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ChannelAttention"]


class ChannelAttention(nn.Module):
    """Weighs each channel of an image by what all of them have on average.

    Args:
        channels: Their number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as ``x``, whose channels are multiplied by weights in [0, 1]."""
        return x * F.hardsigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))
