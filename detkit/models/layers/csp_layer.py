"""Cross stage partial layers, Wang et al., https://arxiv.org/abs/1911.11929, as in YOLOX
(https://arxiv.org/abs/2107.08430) and RTMDet (https://arxiv.org/abs/2212.07784); keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from detkit.models.layers.channel_attention import ChannelAttention
from detkit.models.layers.conv_style import ConvStyle

__all__ = ["CSPBlock", "CSPLayer", "cspnext_block", "darknet_block"]


class CSPBlock(nn.Module):
    """Two convolutions, beside a shortcut or without one.

    Args:
        conv1: The first.
        conv2: The second.
        add_identity: Add the input to the output.
    """

    def __init__(self, conv1: nn.Module, conv2: nn.Module, add_identity: bool) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.add_identity = add_identity

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        return out + x if self.add_identity else out


def darknet_block(style: ConvStyle, depthwise: bool, add_identity: bool) -> Callable[[int], CSPBlock]:
    """Maker of a 1x1 and a 3x3 convolution over so many channels.

    Args:
        style: Of the layers.
        depthwise: Split the 3x3 convolution into one of each channel and one of each pixel.
        add_identity: Add the input to the output.
    """
    second = style.separable_conv if depthwise else style.conv
    return lambda channels: CSPBlock(style.conv(channels, channels, 1), second(channels, channels, 3), add_identity)


def cspnext_block(style: ConvStyle, depthwise: bool, add_identity: bool) -> Callable[[int], CSPBlock]:
    """Maker of a 3x3 and a separable 5x5 convolution over so many channels; see :func:`darknet_block`."""
    first = style.separable_conv if depthwise else style.conv
    return lambda channels: CSPBlock(
        first(channels, channels, 3), style.separable_conv(channels, channels, 5), add_identity
    )


class CSPLayer(nn.Module):
    """Blocks over a part of the channels, while the others pass by.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_blocks: Number of blocks.
        style: Of the 1x1 convolutions around them.
        block: Makes a block over so many channels.
        expand_ratio: Channels of the blocks, of those of the output.
        channel_attention: Weigh the channels before the last convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        style: ConvStyle,
        block: Callable[[int], nn.Module],
        expand_ratio: float = 0.5,
        channel_attention: bool = False,
    ) -> None:
        super().__init__()
        channels = int(out_channels * expand_ratio)
        pointwise = partial(style.conv, kernel_size=1)
        self.main_conv = pointwise(in_channels, channels)
        self.short_conv = pointwise(in_channels, channels)
        self.final_conv = pointwise(2 * channels, out_channels)
        self.blocks = nn.Sequential(*[block(channels) for _ in range(num_blocks)])
        self.attention = ChannelAttention(2 * channels) if channel_attention else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H, W) of ``x`` (N, in_channels, H, W)."""
        joined = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], dim=1)
        return self.final_conv(joined if self.attention is None else self.attention(joined))
