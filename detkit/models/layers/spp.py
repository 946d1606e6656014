"""Spatial pyramid pooling, He et al., https://arxiv.org/abs/1406.4729, as in YOLOX and RTMDet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkit.models.layers.conv_style import ConvStyle

__all__ = ["SPPBottleneck"]


class SPPBottleneck(nn.Module):
    """A map beside its largest values within windows of several sizes, between two 1x1 convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_sizes: Sides of the windows, odd.
        style: Of the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: Sequence[int], style: ConvStyle) -> None:
        super().__init__()
        if not kernel_sizes or any(size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"SPPBottleneck: kernel_sizes must be odd numbers, got {kernel_sizes!r}")
        channels = in_channels // 2
        self.conv1 = style.conv(in_channels, channels, 1)
        self.poolings = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in kernel_sizes)
        self.conv2 = style.conv(channels * (1 + len(kernel_sizes)), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H, W) of ``x`` (N, in_channels, H, W)."""
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pooling(x) for pooling in self.poolings)], dim=1))
