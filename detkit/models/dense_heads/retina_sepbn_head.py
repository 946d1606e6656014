"""RetinaNet's head with norms of each level's own, as in NAS-FPN, https://arxiv.org/abs/1904.07392."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.retina_head import RetinaHead
from detkit.registry import MODELS

__all__ = ["RetinaSepBNHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RetinaSepBNHead(RetinaHead):
    """RetinaHead whose towers share their convolutions between levels, but not their norms.

    Args:
        num_classes: Classes without background.
        num_ins: Number of levels.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Their convolution layers.
        norm_cfg: Their norm layers; None has none.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        loss_cls: Classification loss.
        loss_bbox: Box loss.
        train_cfg: As RetinaHead's.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: As RetinaHead; or ``num_ins`` is not the number of the anchors' levels.
    """

    def __init__(
        self,
        num_classes: int,
        num_ins: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            stacked_convs=stacked_convs,
            feat_channels=feat_channels,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            anchor_generator=anchor_generator,
            bbox_coder=bbox_coder,
            reg_decoded_bbox=reg_decoded_bbox,
            loss_cls=loss_cls,
            loss_bbox=loss_bbox,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        if num_ins != self.prior_generator.num_levels:
            levels = self.prior_generator.num_levels
            raise ValueError(f"RetinaSepBNHead: num_ins={num_ins}, but anchor_generator has {levels} levels")
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(
                conv_tower(in_channels, feat_channels, stacked_convs, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
                for _ in range(num_ins)
            )
            for _ in ("cls", "reg")
        )
        for towers in (self.cls_convs, self.reg_convs):
            for tower in towers[1:]:
                for own, shared in zip(tower.children(), towers[0].children(), strict=True):
                    own.conv = shared.conv

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A * C, H_l, W_l) and encoded boxes (N, A * 4, H_l, W_l) of levels (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = [], []
        for level, cls_convs, reg_convs in zip(x, self.cls_convs, self.reg_convs, strict=True):
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(cls_convs.children(), reg_convs.children(), strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(self.retina_cls(cls_feat))
            bbox_preds.append(self.retina_reg(reg_feat))
        return cls_scores, bbox_preds
