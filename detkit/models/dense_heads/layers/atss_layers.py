"""Layers of ATSS's head, which PAA's has too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import Scale
from mmengine.model import BaseModule
from torch import Tensor, nn

from detkit.models.dense_heads.layers.towers import check_odd_kernel, conv_tower
from detkit.models.layers import convolve_together
from detkit.registry import TASK_UTILS

__all__ = ["ATSSLayers", "one_anchor_generator", "one_anchor_of_a_cell"]

Cfg = Mapping[str, Any]


class ATSSLayers(BaseModule):
    """Two towers over each level: one classifies anchors, one regresses their boxes and says how well these fit.

    Args:
        cls_out_channels: Scores of an anchor.
        encode_size: Numbers of an encoded box.
        num_anchors: Anchors of a cell.
        num_levels: Levels.
        in_channels: Channels of each level.
        feat_channels: Channels of the towers.
        stacked_convs: Convolutions of each tower.
        pred_kernel_size: Kernel of the layers that predict, odd.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None is GN with 32 groups.
        init_cfg: Initialisation; None is normal, with a class probability of 0.01 at the start.

    Raises:
        ValueError: An even kernel.
    """

    def __init__(
        self,
        cls_out_channels: int,
        encode_size: int,
        num_anchors: int,
        num_levels: int,
        in_channels: int,
        feat_channels: int = 256,
        stacked_convs: int = 4,
        pred_kernel_size: int = 3,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        check_odd_kernel(type(self).__name__, pred_kernel_size)
        norm_cfg = norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True}
        self.cls_convs, self.reg_convs = (
            conv_tower(in_channels, feat_channels, stacked_convs, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        size, padding = pred_kernel_size, pred_kernel_size // 2
        self.atss_cls = nn.Conv2d(features, num_anchors * cls_out_channels, size, padding=padding)
        self.atss_reg = nn.Conv2d(features, num_anchors * encode_size, size, padding=padding)
        self.atss_centerness = nn.Conv2d(features, num_anchors, size, padding=padding)
        self.scales = nn.ModuleList(Scale(1.0) for _ in range(num_levels))

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Logits (N, A * C, H_l, W_l), encoded boxes (N, A * 4, H_l, W_l) and logits of their fit (N, A, H_l, W_l)."""
        cls_scores, reg_feats = [], []
        for level in x:
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(self.atss_cls(cls_feat))
            reg_feats.append(reg_feat)
        raw = convolve_together([self.atss_reg, self.atss_centerness], reg_feats)
        bbox_preds = [scale(boxes).float() for (boxes, _), scale in zip(raw, self.scales, strict=True)]
        return cls_scores, bbox_preds, [fits for _, fits in raw]


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "atss_cls", "std": 0.01, "bias_prob": 0.01},
    }


def one_anchor_of_a_cell() -> dict[str, Any]:
    """The anchors of ATSS: one square of 8 strides for each cell."""
    return {
        "type": "AnchorGenerator",
        "octave_base_scale": 8,
        "scales_per_octave": 1,
        "ratios": [1.0],
        "strides": [8, 16, 32, 64, 128],
    }


def one_anchor_generator(cfg: Cfg | None, head: str) -> Any:
    """The prior generator of ``head``, which predicts one box for each cell; None is ATSS's.

    Raises:
        ValueError: The generator makes several anchors of a cell, or its cells are not square.
    """
    generator = TASK_UTILS.build(cfg or one_anchor_of_a_cell())
    if any(number != 1 for number in generator.num_base_priors):
        raise ValueError(
            f"{head}: anchor_generator makes {generator.num_base_priors} anchors of a cell, expected 1 each"
        )
    if any(width != height for width, height in generator.strides):
        raise ValueError(f"{head}: anchor_generator has strides {generator.strides}, expected square ones")
    return generator
