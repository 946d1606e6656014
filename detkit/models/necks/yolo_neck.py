"""Neck of YOLOv3, Redmon and Farhadi, https://arxiv.org/abs/1804.02767; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.layers.conv_style import BN, LEAKY_RELU, ConvStyle
from detkit.registry import MODELS

__all__ = ["YOLOV3Neck"]

Cfg = Mapping[str, Any]


class _DetectionBlock(nn.Module):
    """Five convolutions, 1x1 and 3x3 in turn, the latter of twice the width."""

    def __init__(self, in_channels: int, channels: int, style: ConvStyle) -> None:
        super().__init__()
        self.conv1 = style.conv(in_channels, channels, 1)
        self.conv2 = style.conv(channels, channels * 2, 3)
        self.conv3 = style.conv(channels * 2, channels, 1)
        self.conv4 = style.conv(channels, channels * 2, 3)
        self.conv5 = style.conv(channels * 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(x)))))


@MODELS.register_module()
class YOLOV3Neck(BaseModule):
    """Feature maps, each of which sees the coarser ones beside its own; coarse to fine.

    Args:
        num_scales: Number of feature maps.
        in_channels: Channels of each, coarse to fine: in the order of the outputs, not of the inputs.
        out_channels: Channels of each output.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers.
        act_cfg: Activations.
        init_cfg: Initialisation.
    """

    def __init__(
        self,
        num_scales: int,
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = BN,
        act_cfg: Cfg | None = LEAKY_RELU,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if not num_scales == len(in_channels) == len(out_channels):
            raise ValueError(
                f"YOLOV3Neck: num_scales={num_scales} needs as many in_channels and out_channels, got {in_channels!r} "
                f"and {out_channels!r}"
            )
        super().__init__(init_cfg)
        self.num_scales = num_scales
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)
        self.detect1 = _DetectionBlock(in_channels[0], out_channels[0], style)
        for index in range(1, num_scales):
            channels = out_channels[index]
            self.add_module(f"conv{index}", style.conv(out_channels[index - 1], channels, 1))
            block = _DetectionBlock(in_channels[index] + channels, channels, style)
            self.add_module(f"detect{index + 1}", block)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels[i], H_i, W_i), coarse to fine, of feature maps fine to coarse.

        Each map has half the height and width of the one before it.
        """
        if len(inputs) != self.num_scales:
            raise ValueError(f"YOLOV3Neck: {len(inputs)} feature maps for num_scales={self.num_scales}")
        *finer, coarsest = inputs
        outs = [self.detect1(coarsest)]
        for index, fine in enumerate(reversed(finer), 1):
            coarse = F.interpolate(getattr(self, f"conv{index}")(outs[-1]), scale_factor=2.0)
            outs.append(getattr(self, f"detect{index + 1}")(torch.cat([coarse, fine], dim=1)))
        return tuple(outs)
