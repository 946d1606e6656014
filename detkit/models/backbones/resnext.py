"""ResNeXt, Xie et al., https://arxiv.org/abs/1611.05431: bottlenecks of many narrow groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone, Stage, blocks_of_depth
from detkit.models.backbones.residual_blocks import Bottleneck, grouped_width
from detkit.registry import MODELS

__all__ = ["ResNeXt"]

Cfg = Mapping[str, Any]
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@MODELS.register_module()
class ResNeXt(ResidualBackbone):
    """ResNet whose 3x3 convolutions have groups; further arguments as those of ``ResNet``.

    Args:
        groups: Groups of the 3x3 convolutions.
        base_width: Channels of a group in the first stage, at 64 ``base_channels``.
        depth: 50, 101 or 152.
    """

    def __init__(
        self,
        groups: int = 1,
        base_width: int = 4,
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
        deep_stem: bool = False,
        avg_down: bool = False,
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
        num_blocks = blocks_of_depth("ResNeXt", DEPTHS, depth, num_stages)
        stages = []
        for stage in range(num_stages):
            planes = base_channels * 2**stage
            width = grouped_width(planes, groups, base_width, base_channels)
            block = partial(Bottleneck, groups=groups, width=width)
            stages.append(Stage(block, num_blocks[stage], planes, 4 * planes))
        super().__init__(
            stages,
            in_channels=in_channels,
            stem_channels=base_channels if stem_channels is None else stem_channels,
            strides=strides,
            dilations=dilations,
            out_indices=out_indices,
            style=style,
            deep_stem=deep_stem,
            avg_down=avg_down,
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
