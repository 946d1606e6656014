"""The second stage of Double-Head R-CNN, Wu et al., https://arxiv.org/abs/1904.06493."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from detkit.models.roi_heads.standard_roi_head import StandardRoIHead
from detkit.registry import MODELS

__all__ = ["DoubleHeadRoIHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class DoubleHeadRoIHead(StandardRoIHead):
    """Boxes are found in larger regions than classes.

    Args:
        reg_roi_scale_factor: By how much regions grow for the boxes, > 0.
        bbox_roi_extractor: See :class:`StandardRoIHead`, as all that follows.
        bbox_head: Registered box head that takes features for classes and for boxes.
        mask_roi_extractor: Registered RoI extractor of masks.
        mask_head: Registered mask head.
        shared_head: Registered layers between the extractor and both heads.
        train_cfg: ``assigner``, ``sampler``, ``pos_weight`` and ``mask_size``.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: Initialisation.

    Raises:
        ValueError: A factor that is not positive, or a box head that takes one kind of features.
    """

    def __init__(
        self,
        reg_roi_scale_factor: float,
        bbox_roi_extractor: Cfg,
        bbox_head: Cfg,
        mask_roi_extractor: Cfg | None = None,
        mask_head: Cfg | None = None,
        shared_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(
            bbox_roi_extractor, bbox_head, mask_roi_extractor, mask_head, shared_head, train_cfg, test_cfg, init_cfg
        )
        if reg_roi_scale_factor <= 0:
            raise ValueError(f"DoubleHeadRoIHead: reg_roi_scale_factor must be > 0, got {reg_roi_scale_factor}")
        if len(inspect.signature(self.bbox_head.forward).parameters) < 2:
            raise ValueError(
                "DoubleHeadRoIHead: bbox_head must take features for classes and for boxes, as DoubleConvFCBBoxHead; "
                f"{type(self.bbox_head).__name__} takes one kind"
            )
        self.reg_roi_scale_factor = reg_roi_scale_factor

    def _bbox_forward(self, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Outputs of the box head for RoIs (R, 5), and the features that classes are made of."""
        levels = x[: self.bbox_roi_extractor.num_inputs]
        of_classes = self.bbox_roi_extractor(levels, rois)
        of_boxes = self.bbox_roi_extractor(levels, rois, roi_scale_factor=self.reg_roi_scale_factor)
        if self.with_shared_head:
            of_classes, of_boxes = self.shared_head(of_classes), self.shared_head(of_boxes)
        cls_score, bbox_pred = self.bbox_head(of_classes, of_boxes)
        return {"cls_score": cls_score, "bbox_pred": bbox_pred, "bbox_feats": of_classes}
