"""ResNet, He et al., https://arxiv.org/abs/1512.03385; keys as in torchvision and MMDetection.

ResNetV1d is that of "Bag of Tricks", He et al., https://arxiv.org/abs/1812.01187.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detkit.models.backbones.residual_backbone import NO_DCN, ResidualBackbone, Stage, blocks_of_depth
from detkit.models.backbones.residual_blocks import BasicBlock, Bottleneck
from detkit.registry import MODELS

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "ResNetV1d", "resnet_stages"]

Cfg = Mapping[str, Any]
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@MODELS.register_module()
class ResNet(ResidualBackbone):
    """Residual network over images.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Channels of the image.
        stem_channels: Width of the stem; None is ``base_channels``.
        base_channels: Width of the first stage's inner convolutions.
        num_stages: How many of the four stages exist.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        out_indices: Stages whose outputs are returned.
        style: ``pytorch`` strides in the 3x3 convolution of a bottleneck, ``caffe`` in the first 1x1.
        deep_stem: Three 3x3 convolutions instead of one 7x7.
        avg_down: Pool in shortcuts instead of striding.
        frozen_stages: The stem (0) and stages up to this number do not learn; -1 freezes nothing.
        conv_cfg: Convolution layers; None is a plain convolution.
        norm_cfg: Norm layers; ``requires_grad=False`` freezes their scale and shift. None is batch norm.
        norm_eval: Keep batch statistics fixed in training.
        dcn: Deformable 3x3 convolutions of bottlenecks, such as ``dict(type='DCN', deform_groups=1)``. With
            ``fallback_on_stride=True`` strided ones stay plain.
        stage_with_dcn: Which stages have them.
        plugins: Layers inside bottlenecks: dicts of ``cfg``, ``position`` (``after_conv1``, ``after_conv2`` or
            ``after_conv3``) and ``stages`` (a flag each; all if left out).
        with_cp: Recompute activations in the backward pass to save memory.
        zero_init_residual: Start each block as the identity.
        init_cfg: Initialisation; ``dict(type='Pretrained', checkpoint='torchvision://resnet50')`` or a
            file loads weights. None is Kaiming for convolutions and one for norms.
    """

    def __init__(
        self,
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
        super().__init__(
            resnet_stages("ResNet", depth, base_channels, num_stages),
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


@MODELS.register_module()
class ResNetV1d(ResidualBackbone):
    """ResNet with a deep stem and pooled shortcuts; further arguments as those of :class:`ResNet`.

    Args:
        depth: 18, 34, 50, 101 or 152.
    """

    def __init__(
        self,
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
        super().__init__(
            resnet_stages("ResNetV1d", depth, base_channels, num_stages),
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


def resnet_stages(name: str, depth: int, base_channels: int, num_stages: int) -> list[Stage]:
    """The first ``num_stages`` stages of ResNet, for a network ``name``."""
    block = BasicBlock if depth < 50 else Bottleneck
    widths = [base_channels * 2**stage for stage in range(num_stages)]
    num_blocks = blocks_of_depth(name, DEPTHS, depth, num_stages)
    return [Stage(block, n, w, w * block.expansion) for n, w in zip(num_blocks, widths, strict=True)]
