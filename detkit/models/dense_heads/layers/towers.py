"""The tower of convolutions that dense heads put over each level."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from torch import nn

__all__ = ["check_odd_kernel", "conv_tower"]

Cfg = Mapping[str, Any]
RELU: Cfg = MappingProxyType({"type": "ReLU"})


def conv_tower(
    in_channels: int,
    feat_channels: int,
    num_convs: int,
    *,
    conv_cfg: Cfg | None = None,
    norm_cfg: Cfg | None = None,
    bias: bool | str = "auto",
    last_conv_cfg: Cfg | None = None,
    act_cfg: Cfg | None = RELU,
    depthwise: bool = False,
) -> nn.ModuleList:
    """3x3 convolutions of one width, each with norm and activation.

    Args:
        in_channels: Channels of the level.
        feat_channels: Channels of each convolution.
        num_convs: Their number; 0 makes an empty tower.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers; None has none.
        bias: Whether convolutions have a bias; ``auto`` where no norm follows.
        last_conv_cfg: Layer of the last convolution, such as ``dict(type='DCNv2')``; None is ``conv_cfg``.
        act_cfg: Activations; None has none.
        depthwise: Split each convolution into one of each channel and one of each pixel.
    """
    conv = DepthwiseSeparableConvModule if depthwise else ConvModule
    last = num_convs - 1
    return nn.ModuleList(
        conv(
            in_channels if index == 0 else feat_channels,
            feat_channels,
            3,
            padding=1,
            bias=bias,
            conv_cfg=last_conv_cfg if last_conv_cfg is not None and index == last else conv_cfg,
            norm_cfg=norm_cfg,
            act_cfg=None if act_cfg is None else dict(act_cfg),
        )
        for index in range(num_convs)
    )


def check_odd_kernel(head: str, pred_kernel_size: int) -> None:
    """Refuse a kernel of the predicting layers that would change the size of a level.

    Raises:
        ValueError: It is even.
    """
    if pred_kernel_size < 1 or pred_kernel_size % 2 == 0:
        raise ValueError(f"{head}: pred_kernel_size must be odd, got {pred_kernel_size}")
