"""Res2Net, Gao et al., https://arxiv.org/abs/1904.01169: bottlenecks that see several scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmcv.cnn import build_conv_layer, build_norm_layer
from torch import Tensor, nn

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone, Stage, blocks_of_depth
from detkit.models.backbones.residual_blocks import Plugin, ResidualBlock, conv3x3
from detkit.registry import MODELS

__all__ = ["Res2Net"]

Cfg = Mapping[str, Any]
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottle2neck(ResidualBlock):
    """A bottleneck that splits its channels: each part is convolved together with the result of the part before.

    The first block of a stage convolves the parts by themselves, and pools the last one, which is not convolved.

    Args:
        inplanes: Channels of the input.
        planes: A quarter of the channels of the output.
        stride: Of the 3x3 convolutions.
        dilation: Of the 3x3 convolutions.
        downsample: Shortcut where the shape changes, which it does in the first block of a stage.
        style: ``pytorch``; there is no other.
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers.
        dcn: The 3x3 convolutions, if they are deformable.
        plugins: Layers between.
        scales: Number of parts.
        width: Channels of a part.
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
        scales: int = 4,
        width: int = 26,
    ) -> None:
        super().__init__()
        self.width = width
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, width * scales, postfix=1)
        self.norm3_name, norm3 = build_norm_layer(norm_cfg, planes * 4, postfix=3)
        self.conv1 = build_conv_layer(conv_cfg, inplanes, width * scales, 1, bias=False)
        self.add_module(self.norm1_name, norm1)
        self.convs = nn.ModuleList(
            conv3x3(conv_cfg, width, width, stride, dilation, dcn=dcn) for _ in range(scales - 1)
        )
        self.bns = nn.ModuleList(build_norm_layer(norm_cfg, width)[1] for _ in range(scales - 1))
        self.conv3 = build_conv_layer(conv_cfg, width * scales, planes * 4, 1, bias=False)
        self.add_module(self.norm3_name, norm3)
        self.relu = nn.ReLU(inplace=True)
        self.is_first = downsample is not None
        self.pool = nn.AvgPool2d(3, stride, padding=1) if self.is_first and stride != 1 else nn.Identity()
        self.downsample = downsample
        self._add_plugins(plugins, (width * scales, width * scales, planes * 4))

    @property
    def last_norm(self) -> nn.Module:
        """The norm layer before the shortcut is added."""
        return getattr(self, self.norm3_name)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(getattr(self, self.norm1_name)(self.conv1(x)))
        *parts, last = self._plugged("after_conv1", out).split(self.width, dim=1)
        outs: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=True):
            whole = part if self.is_first or not outs else part + outs[-1]
            outs.append(self.relu(norm(conv(whole))))
        out = self._plugged("after_conv2", torch.cat([*outs, self.pool(last)], dim=1))
        out = self._plugged("after_conv3", self.last_norm(self.conv3(out)))
        return self.relu(out + shortcut)


@MODELS.register_module()
class Res2Net(ResidualBackbone):
    """Res2Net v1b: with a deep stem and pooled shortcuts; further arguments as those of ``ResNet``.

    Args:
        scales: Parts of a block's channels, at least 2.
        base_width: Channels of a part in the first stage, at 64 ``base_channels``.
        style: ``pytorch``; there is no other.
        depth: 50, 101 or 152.
    """

    def __init__(
        self,
        scales: int = 4,
        base_width: int = 26,
        style: str = "pytorch",
        *,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
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
        if scales < 2:
            raise ValueError(f"Res2Net: scales must be 2 or more (one is a ResNet), got {scales}")
        if style != "pytorch":
            raise ValueError(f"Res2Net: style must be 'pytorch', got {style!r}")
        num_blocks = blocks_of_depth("Res2Net", DEPTHS, depth, num_stages)
        stages = []
        for stage in range(num_stages):
            planes = base_channels * 2**stage
            width = int(planes * (base_width / base_channels))
            block = partial(Bottle2neck, scales=scales, width=width)
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
