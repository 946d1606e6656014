"""Dynamic head, Dai et al., https://arxiv.org/abs/2106.08322, as a neck; keys as in MMDetection."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.ops import ModulatedDeformConv2d
from detkit.registry import MODELS

__all__ = ["DyHead"]

TAPS = 9  # of a 3x3 kernel
OFFSETS = 2 * TAPS


@MODELS.register_module()
class DyHead(BaseModule):
    """Attention over levels, places and channels, several times in a row; comes after another neck.

    Args:
        in_channels: Channels of each level.
        out_channels: Channels of each output.
        num_blocks: How many blocks in a row.
        zero_init_offset: Start with the taps in their places.
        init_cfg: Must be None: the blocks have a start of their own.

    Raises:
        ValueError: ``num_blocks`` below 1, or an ``init_cfg``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int = 6,
        zero_init_offset: bool = True,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        if init_cfg is not None:
            raise ValueError(f"DyHead: init_cfg would undo its own initialisation, got {init_cfg!r}")
        if num_blocks < 1:
            raise ValueError(f"DyHead: num_blocks must be at least 1, got {num_blocks}")
        super().__init__()
        widths = [in_channels, *[out_channels] * num_blocks]
        self.dyhead_blocks = nn.Sequential(
            *(_Block(before, after, zero_init_offset) for before, after in itertools.pairwise(widths))
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i) of levels (N, in_channels, H_i, W_i), fine to coarse."""
        return tuple(self.dyhead_blocks(inputs))


class _Block(nn.Module):
    """One round: each level looks at itself and its neighbours."""

    def __init__(self, in_channels: int, out_channels: int, zero_init_offset: bool) -> None:
        super().__init__()
        self.spatial_conv_high = _SharedOffsetConv(in_channels, out_channels)
        self.spatial_conv_mid = _SharedOffsetConv(in_channels, out_channels)
        self.spatial_conv_low = _SharedOffsetConv(in_channels, out_channels, stride=2)
        self.spatial_conv_offset = nn.Conv2d(in_channels, OFFSETS + TAPS, 3, padding=1)
        self.scale_attn_module = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(out_channels, 1, 1), nn.ReLU(), nn.Hardsigmoid()
        )
        self.task_attn_module = _DynamicReLU(out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init_offset:
            nn.init.zeros_(self.spatial_conv_offset.weight)

    def forward(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Levels (N, C, H_i, W_i), fine to coarse."""
        return [self.task_attn_module(self._mean_of_neighbours(x, level)) for level in range(len(x))]

    def _mean_of_neighbours(self, x: Sequence[Tensor], level: int) -> Tensor:
        """Mean of the level and its neighbours, all seen where the level wants to look (eq. 4 and 5)."""
        moved = self.spatial_conv_offset(x[level])
        offset, mask = moved[:, :OFFSETS], moved[:, OFFSETS:].sigmoid()
        seen = [self.spatial_conv_mid(x[level], offset, mask)]
        if level > 0:
            seen.append(self.spatial_conv_low(x[level - 1], offset, mask))
        weighed = [each * self.scale_attn_module(each) for each in seen]
        if level < len(x) - 1:
            higher = self.spatial_conv_high(x[level + 1], offset, mask)
            higher = F.interpolate(higher, size=x[level].shape[2:], mode="bilinear", align_corners=True)
            weighed.append(higher * self.scale_attn_module(higher))
        return torch.stack(weighed).mean(dim=0)


class _SharedOffsetConv(nn.Module):
    """A modulated deformable 3x3 convolution whose offsets come from elsewhere, and a norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv = ModulatedDeformConv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(16, out_channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """(N, out_channels, H', W'): at least as many offsets are given as places come out."""
        height, width = ((size - 1) // self.stride + 1 for size in x.shape[2:])
        offset, mask = _first(offset, height, width), _first(mask, height, width)
        return self.norm(self.conv(x, offset, mask))


class _DynamicReLU(nn.Module):
    """The larger of two lines for each channel, whose slopes and heights depend on the image.

    Chen et al., https://arxiv.org/abs/2003.10027.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvModule(channels, channels // 4, 1)
        self.conv2 = ConvModule(channels // 4, channels * 4, 1, act_cfg=None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as ``x``."""
        numbers = F.hardsigmoid(self.conv2(self.conv1(F.adaptive_avg_pool2d(x, 1)))) - 0.5
        slope, height, other_slope, other_height = numbers.chunk(4, dim=1)
        return torch.max(x * (2 * slope + 1) + height, x * (2 * other_slope) + other_height)


def _first(values: Tensor, height: int, width: int) -> Tensor:
    """``values`` (N, K, H, W) for a map of ``height`` x ``width`` places.

    For a coarser map there are more values than places. The published weights were learnt with an operator that reads
    the first K * height * width numbers of an image as a map of that size; so does this.
    """
    if values.shape[2:] == (height, width):
        return values
    return values.flatten(1)[:, : values.shape[1] * height * width].unflatten(1, (-1, height, width))
