"""ResNeSt, Zhang et al., https://arxiv.org/abs/2004.08955: bottlenecks with attention over splits of their channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone, Stage, blocks_of_depth
from detkit.models.backbones.residual_blocks import Plugin, ResidualBlock, conv3x3, grouped_width
from detkit.registry import MODELS

__all__ = ["ResNeSt"]

Cfg = Mapping[str, Any]
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


class SplitAttentionConv2d(nn.Module):
    """3x3 convolution into ``radix`` splits, and their sum weighed per channel by what the image holds as a whole.

    Args:
        channels: Of the input and of the output.
        stride: Of the convolution.
        dilation: Of the convolution.
        groups: Of the convolution within a split.
        radix: Number of splits, at least 1.
        reduction_factor: By how much the attention is narrower than the convolution.
        conv_cfg: The convolution.
        norm_cfg: Norm layers.
        dcn: The convolution, if it is deformable.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        dilation: int,
        groups: int,
        radix: int,
        reduction_factor: int,
        conv_cfg: Cfg | None,
        norm_cfg: Cfg,
        dcn: Cfg | None,
    ) -> None:
        super().__init__()
        self.radix = radix
        self.groups = groups
        hidden = max(channels * radix // reduction_factor, 32)
        self.conv = conv3x3(conv_cfg, channels, channels * radix, stride, dilation, groups * radix, dcn)
        self.norm0_name, norm0 = build_norm_layer(norm_cfg, channels * radix, postfix=0)
        self.add_module(self.norm0_name, norm0)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=groups)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, hidden, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.fc2 = nn.Conv2d(hidden, channels * radix, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(getattr(self, self.norm0_name)(self.conv(x)))
        splits = x.unflatten(1, (self.radix, -1))  # N, radix, C, H, W
        pooled = splits.sum(1).mean((2, 3), keepdim=True)
        hidden = self.relu(getattr(self, self.norm1_name)(self.fc1(pooled)))
        attention = self.fc2(hidden).unflatten(1, (self.groups, self.radix, -1)).transpose(1, 2)
        attention = attention.softmax(1) if self.radix > 1 else attention.sigmoid()
        return (attention.reshape(*splits.shape[:3], 1, 1) * splits).sum(1)


class SplitAttentionBottleneck(ResidualBlock):
    """Bottleneck whose 3x3 convolution is a :class:`SplitAttentionConv2d`.

    Args:
        inplanes: Channels of the input.
        planes: A quarter of the channels of the output.
        stride: Of the block.
        dilation: Of the 3x3 convolution.
        downsample: Shortcut where the shape changes.
        style: ``pytorch`` strides at the 3x3 convolution, ``caffe`` in the first 1x1.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers.
        dcn: The 3x3 convolution, if it is deformable.
        plugins: Layers between.
        groups: Of the 3x3 convolution within a split.
        width: Channels of the inner convolutions.
        radix: Splits.
        reduction_factor: By how much the attention is narrower.
        avg_down_stride: Pool after the 3x3 convolution instead of striding in it.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        style: str,
        conv_cfg: Cfg | None,
        norm_cfg: Cfg,
        dcn: Cfg | None = None,
        plugins: Sequence[Plugin] = (),
        groups: int = 1,
        width: int = 64,
        radix: int = 2,
        reduction_factor: int = 4,
        avg_down_stride: bool = True,
    ) -> None:
        super().__init__()
        stride1, stride2 = (1, stride) if style == "pytorch" else (stride, 1)
        pooled = avg_down_stride and stride2 > 1
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, width, postfix=1)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, planes * 4, postfix=3)
        self.conv1 = build_conv_layer(conv_cfg, inplanes, width, 1, stride=stride1, bias=False)
        self.add_module(self.norm1_name, norm1)
        self.conv2 = SplitAttentionConv2d(
            width, 1 if pooled else stride2, dilation, groups, radix, reduction_factor, conv_cfg, norm_cfg, dcn
        )
        self.avd_layer = nn.AvgPool2d(3, stride2, padding=1) if pooled else nn.Identity()
        self.conv3 = build_conv_layer(conv_cfg, width, planes * 4, 1, bias=False)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._add_plugins(plugins, (width, width, planes * 4))

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added."""
        return getattr(self, self.norm3_name)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(getattr(self, self.norm1_name)(self.conv1(x)))
        out = self.avd_layer(self.conv2(self._plugged("after_conv1", out)))
        out = self.conv3(self._plugged("after_conv2", out))
        out = self._plugged("after_conv3", self.last_norm(out))
        return self.relu(out + shortcut)


@MODELS.register_module()
class ResNeSt(ResidualBackbone):
    """ResNeSt, with a deep stem and pooled shortcuts; further arguments as those of ``ResNet``.

    Args:
        groups: Groups of the 3x3 convolutions within a split (the paper's cardinality).
        base_width: Channels of a group in the first stage, at 64 ``base_channels``, where there are groups.
        radix: Splits of a block's channels, at least 1.
        reduction_factor: By how much the attention is narrower than the splits.
        avg_down_stride: Pool after the 3x3 convolution instead of striding in it.
        depth: 50, 101, 152 or 200.
    """

    def __init__(
        self,
        groups: int = 1,
        base_width: int = 4,
        radix: int = 2,
        reduction_factor: int = 4,
        avg_down_stride: bool = True,
        *,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        norm_eval: bool = True,
        dcn: Cfg | None = None,
        stage_with_dcn: Sequence[bool] = NO_DCN,
        plugins: Sequence[Cfg] | None = None,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if radix < 1:
            raise ValueError(f"ResNeSt: radix must be 1 or more, got {radix}")
        num_blocks = blocks_of_depth("ResNeSt", DEPTHS, depth, num_stages)
        stages = []
        for stage in range(num_stages):
            planes = base_channels * 2**stage
            block = partial(
                SplitAttentionBottleneck,
                groups=groups,
                width=grouped_width(planes, groups, base_width, base_channels),
                radix=radix,
                reduction_factor=reduction_factor,
                avg_down_stride=avg_down_stride,
            )
            stages.append(Stage(block, num_blocks[stage], planes, 4 * planes))
        super().__init__(
            stages,
            in_channels=in_channels,
            stem_channels=base_channels if stem_channels is None else stem_channels,
            strides=strides,
            dilations=dilations,
            out_indices=out_indices,
            style=style,
            deep_stem=True,
            avg_down=True,
            frozen_stages=frozen_stages,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            dcn=dcn,
            stage_with_dcn=stage_with_dcn,
            plugins=plugins,
            with_cp=with_cp,
            zero_init_residual=zero_init_residual,
            init_cfg=init_cfg,
        )
        self.depth = depth
