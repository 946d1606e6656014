"""CSPDarknet of YOLOX, Ge et al., https://arxiv.org/abs/2107.08430; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkit.models.backbones.csp_backbone import CSPBackbone, CSPStage, csp_stages
from detkit.models.layers.conv_style import FAST_BN, KAIMING_UNIFORM, SWISH, ConvStyle
from detkit.models.layers.csp_layer import CSPLayer, darknet_block
from detkit.registry import MODELS

__all__ = ["CSPDarknet"]

Cfg = Mapping[str, Any]


class Focus(nn.Module):
    """Each two by two pixels become one with four times the channels; then a convolution.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the output.
        kernel_size: Side of the convolution's kernel.
        style: Of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, style: ConvStyle) -> None:
        super().__init__()
        self.conv = style.conv(in_channels * 4, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H / 2, W / 2) of ``x`` (N, C, H, W); H and W must be even."""
        # Top left, bottom left, top right, bottom right: the order of published weights.
        return self.conv(torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=1))


@MODELS.register_module()
class CSPDarknet(CSPBackbone):
    """Darknet of cross stage partial layers.

    Args:
        arch: ``P5`` (four stages) or ``P6`` (five).
        deepen_factor: Multiplies the numbers of blocks.
        widen_factor: Multiplies the channels.
        out_indices: Whose outputs are returned: 0 is the stem, from 1 on the stages.
        frozen_stages: The stem (0) and stages up to this number do not learn; -1 freezes nothing.
        use_depthwise: Split 3x3 convolutions into one of each channel and one of each pixel.
        arch_ovewrite: Instead of ``arch``, of each stage: input and output channels, blocks, whether they have
            shortcuts, whether windows are pooled before.
        spp_kernal_sizes: Sides of these windows, odd.
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
        arch_ovewrite: Sequence[Sequence[Any]] | None = None,
        spp_kernal_sizes: Sequence[int] = (5, 9, 13),
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = FAST_BN,
        act_cfg: Cfg | None = SWISH,
        norm_eval: bool = False,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        stages = csp_stages("CSPDarknet", arch, arch_ovewrite, 9, deepen_factor, widen_factor)
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)

        def csp_layer(stage: CSPStage) -> CSPLayer:
            block = darknet_block(style, use_depthwise, stage.add_identity)
            return CSPLayer(stage.out_channels, stage.out_channels, stage.num_blocks, style, block)

        super().__init__(
            stages,
            Focus(3, stages[0].in_channels, 3, style),
            csp_layer,
            style,
            use_depthwise=use_depthwise,
            spp_kernel_sizes=spp_kernal_sizes,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            init_cfg=init_cfg or dict(KAIMING_UNIFORM),
        )
