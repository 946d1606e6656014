"""Neck of YOLOX, Ge et al., https://arxiv.org/abs/2107.08430; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detkit.models.layers.conv_style import FAST_BN, KAIMING_UNIFORM, SWISH, ConvStyle
from detkit.models.layers.csp_layer import CSPLayer, darknet_block
from detkit.models.necks.csp_pafpn import CSPPathAggregation
from detkit.registry import MODELS

__all__ = ["YOLOXPAFPN"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class YOLOXPAFPN(CSPPathAggregation):
    """Path aggregation network of YOLOX.

    Args:
        in_channels: Channels of each input.
        out_channels: Channels of each output.
        num_csp_blocks: Blocks of each cross stage partial layer.
        use_depthwise: Split 3x3 convolutions into one of each channel and one of each pixel.
        upsample_cfg: ``scale_factor`` and ``mode`` of ``nn.Upsample``; None repeats each pixel twice.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers.
        act_cfg: Activations.
        init_cfg: Initialisation; None is torch's for convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_csp_blocks: int = 3,
        use_depthwise: bool = False,
        upsample_cfg: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = FAST_BN,
        act_cfg: Cfg | None = SWISH,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        style = ConvStyle(conv_cfg, norm_cfg, act_cfg)
        block = darknet_block(style, use_depthwise, add_identity=False)
        super().__init__(
            in_channels,
            lambda before, after: CSPLayer(before, after, num_csp_blocks, style, block),
            lambda channels: style.conv(channels, out_channels, 1),
            style,
            use_depthwise,
            upsample_cfg,
            init_cfg or dict(KAIMING_UNIFORM),
        )
        self.out_channels = out_channels
