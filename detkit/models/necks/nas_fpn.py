"""NAS-FPN, Ghiasi et al., https://arxiv.org/abs/1904.07392: the pyramid of figure 7; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.necks.fpn import used_levels
from detkit.registry import MODELS

__all__ = ["NASFPN"]

Cfg = Mapping[str, Any]
NUM_OUTS = 5
# Two letters for what a cell does (gated or sum), the levels that it merges, the level that it makes; with convolution.
CELLS = ("gp_64_4", "sum_44_4", "sum_43_3", "sum_34_4", "sum_55_5", "sum_77_7", "gp_75_6")


@MODELS.register_module()
class NASFPN(BaseModule):
    """Merges five levels in the order that a search has found, several times in a row.

    Images are best padded to a multiple of 128, so that each level has half the size of the one below.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        num_outs: Number of outputs, 5.
        stack_times: How many times in a row.
        start_level: First input that is used.
        end_level: Last input that is used, inclusive; -1 is the last.
        norm_cfg: Norm layers; None has none.
        init_cfg: Initialisation; None is that of Caffe2 for convolutions.

    Raises:
        ValueError: ``num_outs`` is not 5, or the levels do not fit.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        stack_times: int,
        start_level: int = 0,
        end_level: int = -1,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Caffe2Xavier", "layer": "Conv2d"})
        if num_outs != NUM_OUTS:
            raise ValueError(f"NASFPN: num_outs must be {NUM_OUTS}, got {num_outs}")
        self.in_channels = list(in_channels)
        self.used = used_levels("NASFPN", len(in_channels), start_level, end_level, num_outs)
        self.lateral_convs = nn.ModuleList(
            ConvModule(in_channels[level], out_channels, 1, norm_cfg=norm_cfg, act_cfg=None) for level in self.used
        )
        self.extra_downsamples = nn.ModuleList(
            nn.Sequential(
                ConvModule(out_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None), nn.MaxPool2d(2, 2)
            )
            for _ in range(num_outs - len(self.used))
        )
        self.fpn_stages: Any = nn.ModuleList(
            nn.ModuleDict({name: _OutConv(out_channels, norm_cfg) for name in CELLS}) for _ in range(stack_times)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f"NASFPN: {len(inputs)} feature maps for {len(self.in_channels)} in_channels")
        levels = [conv(inputs[level]) for conv, level in zip(self.lateral_convs, self.used, strict=True)]
        for downsample in self.extra_downsamples:
            levels.append(downsample(levels[-1]))
        p3, p4, p5, p6, p7 = levels
        for stage in self.fpn_stages:
            mixed = stage["gp_64_4"](_gated(p6, p4, p4))
            mixed = stage["sum_44_4"](_sum(mixed, p4, p4))
            p3 = stage["sum_43_3"](_sum(mixed, p3, p3))
            p4 = stage["sum_34_4"](_sum(p3, mixed, p4))
            p5 = stage["sum_55_5"](_sum(p5, _gated(p4, p3, p5), p5))
            p7 = stage["sum_77_7"](_sum(p7, _gated(p5, mixed, p7), p7))
            p6 = stage["gp_75_6"](_gated(p7, p5, p6))
        return p3, p4, p5, p6, p7


class _OutConv(nn.Module):
    """ReLU, 3x3 convolution and norm behind a cell."""

    def __init__(self, channels: int, norm_cfg: Cfg | None) -> None:
        super().__init__()
        order = ("act", "conv", "norm")
        self.out_conv = ConvModule(channels, channels, 3, padding=1, bias=True, norm_cfg=norm_cfg, order=order)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as ``x``."""
        return self.out_conv(x)


def _sum(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    return _resized(a, like) + _resized(b, like)


def _gated(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """``b``, and ``a`` weighed by what the channels of ``b`` hold on average."""
    a, b = _resized(a, like), _resized(b, like)
    return b + F.adaptive_avg_pool2d(b, 1).sigmoid() * a


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Pixels repeated, or largest values of windows, at the size of ``like``; zeros at the border where none fits."""
    (height, width), (wanted_height, wanted_width) = x.shape[2:], like.shape[2:]
    if (height, width) == (wanted_height, wanted_width):
        return x
    if (height, width) < (wanted_height, wanted_width):
        return F.interpolate(x, size=like.shape[2:])
    bottom, right = -height % wanted_height, -width % wanted_width
    x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
    return F.max_pool2d(x, (x.shape[2] // wanted_height, x.shape[3] // wanted_width))
