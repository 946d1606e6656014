"""Neck of HRNet (HRNetV2p), Sun et al., https://arxiv.org/abs/1904.04514; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.recompute import recomputed
from detkit.registry import MODELS

__all__ = ["HRFPN"]

Cfg = Mapping[str, Any]
POOLINGS: Mapping[str, Callable[..., Tensor]] = {"AVG": F.avg_pool2d, "MAX": F.max_pool2d}


@MODELS.register_module()
class HRFPN(BaseModule):
    """All inputs at the first one's resolution as one map, which is pooled to a pyramid.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        num_outs: Number of outputs.
        pooling_type: ``AVG`` or ``MAX``.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; None has none.
        with_cp: Recompute activations in the backward pass to save memory.
        stride: Of each level's convolution.
        init_cfg: Initialisation; None is Caffe2's Xavier.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int = 5,
        pooling_type: str = "AVG",
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        with_cp: bool = False,
        stride: int = 1,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if pooling_type not in POOLINGS:
            raise ValueError(f"HRFPN: pooling_type must be one of {', '.join(POOLINGS)}, got {pooling_type!r}")
        super().__init__(init_cfg or {"type": "Caffe2Xavier", "layer": "Conv2d"})
        self.in_channels = list(in_channels)
        self.with_cp = with_cp
        self.pooling = POOLINGS[pooling_type]
        layers: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": None}
        self.reduction_conv = ConvModule(sum(in_channels), out_channels, 1, **layers)
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, stride=stride, padding=1, **layers) for _ in range(num_outs)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs (N, out_channels, H_i, W_i), fine to coarse, of inputs (N, in_channels[i], H_i, W_i)."""
        if len(inputs) != len(self.in_channels):
            raise ValueError(f"HRFPN: {len(inputs)} feature maps for {len(self.in_channels)} in_channels")
        size = inputs[0].shape[2:]
        finest, *coarser = inputs
        maps = [finest, *(F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in coarser)]
        joined = self._call(self.reduction_conv, torch.cat(maps, dim=1))
        outs = []
        for level, conv in enumerate(self.fpn_convs):
            pooled = self.pooling(joined, kernel_size=2**level, stride=2**level) if level else joined
            outs.append(self._call(conv, pooled))
        return tuple(outs)

    def _call(self, module: nn.Module, x: Tensor) -> Tensor:
        return recomputed(nn.Module.__call__, module, x) if self.with_cp and x.requires_grad else module(x)
