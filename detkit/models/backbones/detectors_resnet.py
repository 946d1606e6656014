"""ResNet of DetectoRS, Qiao et al., https://arxiv.org/abs/2006.02334; keys as in MMDetection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmcv.cnn import build_conv_layer
from torch import Tensor, nn

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone, Stage, blocks_of_depth
from detkit.models.backbones.residual_blocks import Bottleneck
from detkit.models.backbones.resnet import DEPTHS
from detkit.models.layers import conv_norm
from detkit.recompute import recomputed
from detkit.registry import MODELS

__all__ = ["DetectoRSResNet"]

Cfg = Mapping[str, Any]


class _Block(Bottleneck):
    """A bottleneck with switchable convolutions; the first of a stage may take feedback.

    Args:
        sac: The 3x3 convolution; None has that of the bottleneck.
        rfp_inplanes: Channels of the feedback; None has none.
        dilation: Of the 3x3 convolution.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None,
        style: str,
        *rest: Any,
        sac: Cfg | None,
        rfp_inplanes: int | None,
    ) -> None:
        super().__init__(inplanes, planes, stride, dilation, downsample, style, *rest)
        if sac is not None:
            stride2 = stride if style == "pytorch" else 1
            sizes = {"stride": stride2, "padding": dilation, "dilation": dilation}
            self.conv2 = build_conv_layer(sac, planes, planes, 3, bias=False, **sizes)
        # Only the first block of a stage changes the shape.
        feedback = rfp_inplanes is not None and downsample is not None
        self.rfp_conv = nn.Conv2d(rfp_inplanes, planes * self.expansion, 1) if feedback else None  # type: ignore[arg-type]

    def forward(self, x: Tensor, feedback: Tensor | None = None) -> Tensor:
        """(N, C', H', W') of ``x``, and of the feedback (N, rfp_inplanes, H', W')."""
        out = self.summed(x)
        if feedback is not None and self.rfp_conv is not None:
            out = out + self.rfp_conv(feedback)
        return self.relu(out)


@MODELS.register_module("DetectoRS_ResNet")
class DetectoRSResNet(ResidualBackbone):
    """ResNet with switchable atrous convolutions, that a recursive pyramid may feed; else as ``ResNet``.

    Args:
        sac: The 3x3 convolutions, ``dict(type='SAC', use_deform=True)``; None are plain.
        stage_with_sac: Which stages have them.
        rfp_inplanes: Channels of the feedback to all stages but the first; None takes none.
        output_img: Return the images too, first: RFP needs them.
        pretrained: Weights to start from; the older form of ``init_cfg``.
        depth: 50, 101 or 152.

    Raises:
        ValueError: Another depth, flags that are not one for each stage, or ``pretrained`` besides ``init_cfg``.
    """

    def __init__(
        self,
        sac: Cfg | None = None,
        stage_with_sac: Sequence[bool] = NO_DCN,
        rfp_inplanes: int | None = None,
        output_img: bool = False,
        pretrained: str | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
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
    ) -> None:
        if pretrained is not None and init_cfg is not None:
            raise ValueError("DetectoRS_ResNet: pretrained and init_cfg both say what to start from; give one")
        if sac is not None and len(stage_with_sac) != num_stages:
            raise ValueError(f"DetectoRS_ResNet: stage_with_sac needs {num_stages} flags, got {stage_with_sac!r}")
        depths = {depth: blocks for depth, blocks in DEPTHS.items() if depth >= 50}
        stages = []
        for stage, num_blocks in enumerate(blocks_of_depth("DetectoRS_ResNet", depths, depth, num_stages)):
            planes = base_channels * 2**stage
            block = partial(
                _Block,
                sac=sac if sac is not None and stage_with_sac[stage] else None,
                rfp_inplanes=rfp_inplanes if stage > 0 else None,
            )
            stages.append(Stage(block, num_blocks, planes, 4 * planes))
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
            init_cfg=init_cfg if pretrained is None else {"type": "Pretrained", "checkpoint": pretrained},
        )
        self.depth = depth
        self.output_img = output_img

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of ``out_indices``; before them the images, if ``output_img``."""
        outs = super().forward(x)
        return (x, *outs) if self.output_img else outs

    def rfp_forward(self, x: Tensor, rfp_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Feature maps of ``out_indices`` of images (N, C, H, W), with feedback for each stage.

        Args:
            x: Images.
            rfp_feats: (N, rfp_inplanes, H / s_i, W / s_i) of each stage; the first is not used.
        """
        x = self.stem(x) if self.deep_stem else self.relu(conv_norm(self.conv1, getattr(self, self.norm1_name), x))
        x = self.maxpool(x)
        outs = []
        for stage, (name, feedback) in enumerate(zip(self.stage_names, rfp_feats, strict=True)):
            for block in getattr(self, name):
                again = self.with_cp and x.requires_grad
                x = recomputed(nn.Module.__call__, block, x, feedback) if again else block(x, feedback)
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
