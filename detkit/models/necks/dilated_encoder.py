"""Dilated encoder of YOLOF, Chen et al., https://arxiv.org/abs/2103.09460; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, caffe2_xavier_init, constant_init, normal_init
from torch import Tensor, nn

from detkit.registry import MODELS

__all__ = ["DilatedEncoder"]


class _Bottleneck(nn.Module):
    """1x1, dilated 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, channels: int, mid_channels: int, dilation: int) -> None:
        super().__init__()
        norm = {"type": "BN", "requires_grad": True}
        self.conv1 = ConvModule(channels, mid_channels, 1, norm_cfg=norm)
        self.conv2 = ConvModule(mid_channels, mid_channels, 3, padding=dilation, dilation=dilation, norm_cfg=norm)
        self.conv3 = ConvModule(mid_channels, channels, 1, norm_cfg=norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.conv2(self.conv1(x)))


@MODELS.register_module()
class DilatedEncoder(BaseModule):
    """One level with the receptive fields of many: the last input through blocks of growing dilation.

    Args:
        in_channels: Channels of the last input.
        out_channels: Channels of the output.
        block_mid_channels: Channels of the dilated convolutions.
        num_residual_blocks: Number of blocks.
        block_dilations: Dilation of each.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_mid_channels: int,
        num_residual_blocks: int,
        block_dilations: Sequence[int],
    ) -> None:
        if len(block_dilations) != num_residual_blocks:
            raise ValueError(
                f"DilatedEncoder: num_residual_blocks={num_residual_blocks} needs as many block_dilations, got "
                f"{block_dilations!r}"
            )
        super().__init__()
        self.lateral_conv = nn.Conv2d(in_channels, out_channels, 1)
        self.lateral_norm = nn.BatchNorm2d(out_channels)
        self.fpn_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.fpn_norm = nn.BatchNorm2d(out_channels)
        self.dilated_encoder_blocks = nn.Sequential(
            *[_Bottleneck(out_channels, block_mid_channels, dilation) for dilation in block_dilations]
        )

    def init_weights(self) -> None:
        """Caffe2's Xavier for the first two convolutions, small normal values for those of the blocks."""
        caffe2_xavier_init(self.lateral_conv)
        caffe2_xavier_init(self.fpn_conv)
        for module in self.dilated_encoder_blocks.modules():
            if isinstance(module, nn.Conv2d):
                normal_init(module, mean=0, std=0.01)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                constant_init(module, 1)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """One output (N, out_channels, H, W) of the last of ``inputs``, (N, in_channels, H, W)."""
        out = self.lateral_norm(self.lateral_conv(inputs[-1]))
        out = self.fpn_norm(self.fpn_conv(out))
        return (self.dilated_encoder_blocks(out),)
