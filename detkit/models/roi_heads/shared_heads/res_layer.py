"""A stage of ResNet over the features of regions (C4: https://arxiv.org/abs/1512.03385, appendix A)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from detkit.models.backbones.hr_module import run_blocks
from detkit.models.backbones.residual_backbone import STYLES, blocks_of_stage
from detkit.models.backbones.resnet import resnet_stages
from detkit.models.layers import hold_statistics
from detkit.registry import MODELS

__all__ = ["ResLayer"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class ResLayer(BaseModule):
    """The stage that the backbone leaves out, once for each region.

    Args:
        depth: 18, 34, 50, 101 or 152, as the backbone's.
        stage: Which stage, from 0; its weights are named ``layer<stage + 1>`` as in the backbone.
        stride: Of its first block.
        dilation: Of its blocks.
        style: ``pytorch`` strides in the 3x3 convolution of a bottleneck, ``caffe`` in the first 1x1.
        norm_cfg: Norm layers; ``requires_grad=False`` freezes their scale and shift. None is batch norm.
        norm_eval: Keep batch statistics fixed in training.
        with_cp: Recompute activations in the backward pass to save memory.
        dcn: Deformable 3x3 convolutions of bottlenecks.
        init_cfg: Initialisation; None is Kaiming for convolutions and one for norms.

    Raises:
        ValueError: Another depth, stage or style.
    """

    def __init__(
        self,
        depth: int,
        stage: int = 3,
        stride: int = 2,
        dilation: int = 1,
        style: str = "pytorch",
        norm_cfg: Cfg | None = None,
        norm_eval: bool = True,
        with_cp: bool = False,
        dcn: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if stage not in (1, 2, 3):
            raise ValueError(f"ResLayer: stage must be 1, 2 or 3, as the backbone has the first; got {stage!r}")
        if style not in STYLES:
            raise ValueError(f"ResLayer: style must be 'pytorch' or 'caffe', got {style!r}")
        default_init = [
            {"type": "Kaiming", "layer": "Conv2d"},
            {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
        ]
        super().__init__(init_cfg or default_init)
        before, own = resnet_stages("ResLayer", depth, 64, stage + 1)[-2:]
        rest: tuple[Any, ...] = (style, None, norm_cfg or {"type": "BN", "requires_grad": True}, dcn, [])
        self.stage_name = f"layer{stage + 1}"
        self.add_module(self.stage_name, blocks_of_stage(own, before.outplanes, stride, dilation, False, rest))
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """Features (R, C', rows / stride, columns / stride) of regions (R, C, rows, columns)."""
        return run_blocks(getattr(self, self.stage_name), x, self.with_cp)

    def train(self, mode: bool = True) -> ResLayer:
        """Training mode, in which (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        if self.norm_eval:
            hold_statistics(self)
        return self
