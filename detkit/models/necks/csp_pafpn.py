"""What the necks of YOLOX and RTMDet are but for their blocks and last convolutions: a path aggregation network, Liu et
al., https://arxiv.org/abs/1803.01534, whose maps are joined, not added, and refined by cross stage partial layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import ConvStyle
from detkit.registry import check_keys

__all__ = ["CSPPathAggregation"]

Cfg = Mapping[str, Any]
Conv = Callable[[int, int], nn.Module]
UPSAMPLE_KEYS = ("size", "scale_factor", "mode", "align_corners")


class CSPPathAggregation(BaseModule):
    """A path from coarse to fine, then one from fine to coarse.

    Args:
        in_channels: Channels of each input.
        csp_layer: Makes a layer of so many channels to so many.
        out_conv: Makes the last convolution of a level from its channels.
        style: Of the other convolutions.
        use_depthwise: Split the strided convolutions into one of each channel and one of each pixel.
        upsample_cfg: ``scale_factor`` and ``mode`` of ``nn.Upsample``; None repeats each pixel twice.
        init_cfg: Initialisation.
    """

    upsample_cfg_keys = UPSAMPLE_KEYS

    def __init__(
        self,
        in_channels: Sequence[int],
        csp_layer: Conv,
        out_conv: Callable[[int], nn.Module],
        style: ConvStyle,
        use_depthwise: bool,
        upsample_cfg: Cfg | None,
        init_cfg: Cfg | Sequence[Cfg] | None,
    ) -> None:
        super().__init__(init_cfg)
        check_keys(upsample_cfg, UPSAMPLE_KEYS, "upsample_cfg")
        self.in_channels = list(in_channels)
        # Channels of a level and of the next, coarser one.
        steps = list(pairwise(in_channels))
        strided = style.separable_conv if use_depthwise else style.conv
        self.upsample = nn.Upsample(**(upsample_cfg or {"scale_factor": 2, "mode": "nearest"}))
        # In the order of their use: coarse to fine.
        self.reduce_layers = nn.ModuleList(style.conv(coarse, fine, 1) for fine, coarse in reversed(steps))
        self.top_down_blocks = nn.ModuleList(csp_layer(fine * 2, fine) for fine, _ in reversed(steps))
        self.downsamples = nn.ModuleList(strided(fine, fine, 3, stride=2) for fine, _ in steps)
        self.bottom_up_blocks = nn.ModuleList(csp_layer(fine * 2, coarse) for fine, coarse in steps)
        self.out_convs = nn.ModuleList(out_conv(channels) for channels in in_channels)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(
                f"{type(self).__name__}: {len(inputs)} feature maps for {len(self.in_channels)} in_channels"
            )
        *finer, x = inputs
        reduced = []
        for fine, reduce, block in zip(reversed(finer), self.reduce_layers, self.top_down_blocks, strict=True):
            reduced.append(reduce(x))
            x = block(torch.cat([self.upsample(reduced[-1]), fine], dim=1))
        refined = [x]
        for coarse, downsample, block in zip(reversed(reduced), self.downsamples, self.bottom_up_blocks, strict=True):
            refined.append(block(torch.cat([downsample(refined[-1]), coarse], dim=1)))
        return tuple(conv(x) for conv, x in zip(self.out_convs, refined, strict=True))
