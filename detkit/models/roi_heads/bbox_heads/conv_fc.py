"""Convolutions, then linear layers, over the features of a region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv.cnn import ConvModule
from torch import nn

__all__ = ["conv_branch", "fc_branch"]

Cfg = Mapping[str, Any]


def conv_branch(
    num_convs: int, in_channels: int, out_channels: int, conv_cfg: Cfg | None, norm_cfg: Cfg | None
) -> tuple[nn.ModuleList, int]:
    """``num_convs`` 3x3 convolutions, and the channels after them."""
    widths = [in_channels] + [out_channels] * num_convs
    convs = nn.ModuleList(
        ConvModule(width, out_channels, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg) for width in widths[:-1]
    )
    return convs, widths[-1]


def fc_branch(num_fcs: int, in_features: int, out_features: int) -> tuple[nn.ModuleList, int]:
    """``num_fcs`` linear layers, and the features after them."""
    widths = [in_features] + [out_features] * num_fcs
    return nn.ModuleList(nn.Linear(width, out_features) for width in widths[:-1]), widths[-1]
