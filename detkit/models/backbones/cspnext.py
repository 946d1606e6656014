"""CSPNeXt of RTMDet, Lyu et al., https://arxiv.org/abs/2212.07784; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from detkit.models.backbones.csp_backbone import CSPBackbone, CSPStage, csp_stages
from detkit.models.layers.conv_style import FAST_BN, KAIMING_UNIFORM, SILU, ConvStyle
from detkit.models.layers.csp_layer import CSPLayer, cspnext_block
from detkit.registry import MODELS

__all__ = ["CSPNeXt"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class CSPNeXt(CSPBackbone):
    """Cross stage partial layers of large kernels, whose channels are weighed.

    Args:
        arch: ``P5`` (four stages) or ``P6`` (five).
        deepen_factor: Multiplies the numbers of blocks.
        widen_factor: Multiplies the channels.
        out_indices: Whose outputs are returned: 0 is the stem, from 1 on the stages.
        frozen_stages: The stem (0) and stages up to this number do not learn; -1 freezes nothing.
        use_depthwise: Split 3x3 convolutions into one of each channel and one of each pixel.
        expand_ratio: Channels of the blocks, of those of their stage.
        arch_ovewrite: Instead of ``arch``, of each stage: input and output channels, blocks, whether they have
            shortcuts, whether windows are pooled before.
        spp_kernel_sizes: Sides of these windows, odd.
        channel_attention: Weigh the channels of each stage.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers.
        act_cfg: Activations.
        norm_eval: Keep batch statistics fixed in training.
        init_cfg: Initialisation; None is torch's for convolutions.
    """

    def __init__(
        self,
        arch: str = "P5",
        deepen_factor: float = 1.0,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (2, 3, 4),
        frozen_stages: int = -1,
        use_depthwise: bool = False,
        expand_ratio: float = 0.5,
        arch_ovewrite: Sequence[Sequence[Any]] | None = None,
        spp_kernel_sizes: Sequence[int] = (5, 9, 13),
        channel_attention: bool = True,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = FAST_BN,
        act_cfg: Cfg | None = SILU,
        norm_eval: bool = False,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        stages = csp_stages("CSPNeXt", arch, arch_ovewrite, 6, deepen_factor, widen_factor)
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)

        def csp_layer(stage: CSPStage) -> CSPLayer:
            channels = stage.out_channels
            block = cspnext_block(style, use_depthwise, stage.add_identity)
            return CSPLayer(channels, channels, stage.num_blocks, style, block, expand_ratio, channel_attention)

        width = stages[0].in_channels
        stem = nn.Sequential(
            style.conv(3, width // 2, 3, stride=2),
            style.conv(width // 2, width // 2, 3),
            style.conv(width // 2, width, 3),
        )
        super().__init__(
            stages,
            stem,
            csp_layer,
            style,
            use_depthwise=use_depthwise,
            spp_kernel_sizes=spp_kernel_sizes,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            init_cfg=init_cfg or dict(KAIMING_UNIFORM),
        )
