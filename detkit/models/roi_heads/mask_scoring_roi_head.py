"""The second stage of Mask Scoring R-CNN, Huang et al., https://arxiv.org/abs/1903.00241."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.mask_heads.mask_prediction import of_own_class
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.models.roi_heads.standard_roi_head import Proposed, StandardRoIHead
from detkit.models.roi_heads.train_cfg import ROI_TRAIN_CFG_KEYS
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox2roi
from detkit.structures.proposals import Proposals, boxes_to_rois

__all__ = ["MaskScoringRoIHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class MaskScoringRoIHead(StandardRoIHead):
    """StandardRoIHead with masks, and how well each fits its object.

    Detections have ``mask_scores`` beside ``scores``: by them masks are ranked, boxes by ``scores``.

    Args:
        mask_iou_head: Registered head of the masks' IoU.
        bbox_roi_extractor: Registered RoI extractor.
        bbox_head: Registered box head.
        mask_roi_extractor: Registered RoI extractor of masks; None uses the features of the box head.
        mask_head: Registered mask head.
        shared_head: Registered layers between the extractor and both heads (C4).
        train_cfg: As of StandardRoIHead, and ``mask_thr_binary``, the logit from which a pixel counts for the IoU
            that is learnt, 0.5 by default.
        test_cfg: As of StandardRoIHead.
        init_cfg: Initialisation.

    Raises:
        ValueError: There is no mask head.
    """

    train_cfg_keys = (*ROI_TRAIN_CFG_KEYS, "mask_thr_binary")

    def __init__(
        self,
        mask_iou_head: Cfg,
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
        if mask_head is None:
            raise ValueError("MaskScoringRoIHead: mask_head is missing")
        self.mask_iou_head = MODELS.build(mask_iou_head)

    def forward(
        self,
        x: Sequence[Tensor],
        rpn_results_list: Proposed,
        batch_data_samples: Sequence[DetDataSample] | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits and encoded boxes of the proposals, masks of the first 100, and the IoU of these masks."""
        rois = boxes_to_rois(Proposals.of(rpn_results_list).boxes)
        outputs = self._bbox_forward(x, rois)
        mask_preds, feats = self._mask_forward(x, rois[:100])
        labels = outputs["cls_score"][:100, : self.bbox_head.num_classes].argmax(dim=1)
        ious = self.mask_iou_head(feats, of_own_class(mask_preds, labels))
        return outputs["cls_score"], outputs["bbox_pred"], mask_preds, ious

    def _mask_loss(
        self,
        x: Sequence[Tensor],
        bbox_feats: Tensor,
        sampled: SampledRoIs,
        batch_data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        learnt = self._learn_masks(x, bbox_feats, sampled, batch_data_samples)
        labels = learnt.positives.labels
        own = of_own_class(learnt.mask_preds, labels)
        ious = self.mask_iou_head(learnt.feats, own).gather(1, labels.unsqueeze(1)).squeeze(1)
        threshold = self.train_cfg.extra.get("mask_thr_binary", 0.5)
        of_ious = self.mask_iou_head.loss_and_target(
            ious, own, learnt.mask_targets, learnt.positives, learnt.masks, threshold
        )
        return learnt.losses | of_ious

    def _predict_mask(
        self, x: Sequence[Tensor], found: list[InstanceData], metas: Sequence[Mapping[str, Any]], rescale: bool
    ) -> list[InstanceData]:
        mask_preds, feats = self._mask_forward(x, bbox2roi([one.bboxes for one in found]))
        counts = [len(one) for one in found]
        own = of_own_class(mask_preds, torch.cat([one.labels for one in found]))
        ious = self.mask_iou_head(feats, own).split(counts)
        found = self.mask_head.predict_by_feat(mask_preds.split(counts), found, metas, self.test_cfg, rescale)
        return self.mask_iou_head.predict_by_feat(ious, found)
