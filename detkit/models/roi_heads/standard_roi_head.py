"""The second stage of Faster R-CNN, https://arxiv.org/abs/1506.01497, and Mask R-CNN,
https://arxiv.org/abs/1703.06870."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.batch_statistics import outputs_of_sampled
from detkit.models.roi_heads.mask_heads.mask_targets import Masks
from detkit.models.roi_heads.prediction import ROI_TEST_CFG_KEYS, RoITestCfg
from detkit.models.roi_heads.sampling import PositiveRoIs, SampledRoIs, positive_rois
from detkit.models.roi_heads.train_cfg import ROI_TRAIN_CFG_KEYS, RoITrainCfg
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox2roi
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.proposals import Proposals, boxes_to_rois

__all__ = ["LearntMasks", "StandardRoIHead"]

Cfg = Mapping[str, Any]
Proposed = Proposals | Sequence[InstanceData]


class LearntMasks(NamedTuple):
    """What a step says of the masks of its K positive RoIs.

    Attributes:
        positives: The RoIs.
        masks: Masks of the objects of each image.
        feats: (K, C, h, w) what the masks are predicted from.
        mask_preds: Logits (K, classes or 1, H, W).
        mask_targets: (K, H, W).
        losses: By name.
    """

    positives: PositiveRoIs
    masks: Masks
    feats: Tensor
    mask_preds: Tensor
    mask_targets: Tensor
    losses: dict[str, Tensor]


@MODELS.register_module()
class StandardRoIHead(BaseModule):
    """Classes and boxes of proposals and, where there is a mask head, masks of what was found.

    Args:
        bbox_roi_extractor: Registered RoI extractor.
        bbox_head: Registered box head.
        mask_roi_extractor: Registered RoI extractor of masks; None uses the features of the box head.
        mask_head: Registered mask head; None has no masks.
        shared_head: Registered layers between the extractor and both heads (C4).
        train_cfg: ``assigner``, ``sampler``, ``pos_weight`` and ``mask_size``.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: Initialisation.
    """

    train_cfg_keys: tuple[str, ...] = ROI_TRAIN_CFG_KEYS
    test_cfg_keys: tuple[str, ...] = ROI_TEST_CFG_KEYS

    def __init__(
        self,
        bbox_roi_extractor: Cfg,
        bbox_head: Cfg,
        mask_roi_extractor: Cfg | None = None,
        mask_head: Cfg | None = None,
        shared_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if shared_head is not None:
            self.shared_head = MODELS.build(shared_head)
        self.bbox_roi_extractor = MODELS.build(bbox_roi_extractor)
        self.bbox_head = MODELS.build(bbox_head)
        if mask_head is not None:
            if mask_roi_extractor is not None:
                self.mask_roi_extractor = MODELS.build(mask_roi_extractor)
            self.mask_head = MODELS.build(mask_head)
        self.with_shared_head = shared_head is not None
        self.with_mask = mask_head is not None
        self.share_roi_extractor = self.with_mask and mask_roi_extractor is None
        extra = [key for key in self.train_cfg_keys if key not in ROI_TRAIN_CFG_KEYS]
        self.train_cfg = RoITrainCfg.of(train_cfg, self, extra)
        self.test_cfg = RoITestCfg.of(test_cfg)

    def forward(
        self,
        x: Sequence[Tensor],
        rpn_results_list: Proposed,
        batch_data_samples: Sequence[DetDataSample] | None = None,
    ) -> tuple[Tensor, ...]:
        """Logits and encoded boxes of the proposals and, where there is a mask head, masks of the first 100."""
        rois = boxes_to_rois(Proposals.of(rpn_results_list).boxes)
        outputs = self._bbox_forward(x, rois)
        masks = self._mask_forward(x, rois[:100])[:1] if self.with_mask else ()
        return outputs["cls_score"], outputs["bbox_pred"], *masks

    def loss(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_bbox`` and, where there is a mask head, ``loss_mask``.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: Their annotations.
        """
        truth = GroundTruth.from_samples(batch_data_samples)
        sampled = self.train_cfg.sample(Proposals.of(rpn_results_list), truth, self.bbox_head.num_classes, x)
        layers = [self.bbox_roi_extractor, self.bbox_head]
        if self.with_shared_head:
            layers.append(self.shared_head)
        outputs = outputs_of_sampled(lambda rois: self._bbox_forward(x, rois), layers, sampled)
        losses = self._bbox_loss(outputs, sampled)
        if self.with_mask:
            losses |= self._mask_loss(x, outputs["bbox_feats"], sampled, batch_data_samples)
        return losses

    def _bbox_forward(self, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Outputs of the box head for RoIs (R, 5), and the features they are made of."""
        feats = self.bbox_roi_extractor(x[: self.bbox_roi_extractor.num_inputs], rois)
        if self.with_shared_head:
            feats = self.shared_head(feats)
        cls_score, bbox_pred = self.bbox_head(feats)
        return {"cls_score": cls_score, "bbox_pred": bbox_pred, "bbox_feats": feats}

    def _bbox_loss(self, outputs: Mapping[str, Tensor], sampled: SampledRoIs) -> dict[str, Tensor]:
        found = self.bbox_head.loss_and_target(outputs["cls_score"], outputs["bbox_pred"], sampled, self.train_cfg)
        return found["loss_bbox"]

    def _mask_forward(self, x: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Mask logits of RoIs (K, 5), and the features they are made of."""
        extractor = self.bbox_roi_extractor if self.share_roi_extractor else self.mask_roi_extractor
        feats = extractor(x[: extractor.num_inputs], rois)
        if self.with_shared_head:
            feats = self.shared_head(feats)
        return self.mask_head(feats), feats

    def _mask_loss(
        self,
        x: Sequence[Tensor],
        bbox_feats: Tensor,
        sampled: SampledRoIs,
        batch_data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        return self._learn_masks(x, bbox_feats, sampled, batch_data_samples).losses

    def _learn_masks(
        self,
        x: Sequence[Tensor],
        bbox_feats: Tensor,
        sampled: SampledRoIs,
        batch_data_samples: Sequence[DetDataSample],
    ) -> LearntMasks:
        positives = positive_rois([sampled])[0]
        if self.share_roi_extractor:
            feats = bbox_feats[positives.place]
            mask_preds = self.mask_head(feats)
        else:
            mask_preds, feats = self._mask_forward(x, positives.rois)
        masks = [sample.gt_instances.masks for sample in batch_data_samples]
        found = self.mask_head.loss_and_target(mask_preds, positives, masks, self.train_cfg)
        return LearntMasks(positives, masks, feats, mask_preds, found["mask_targets"], found["loss_mask"])

    def predict(
        self,
        x: Sequence[Tensor],
        rpn_results_list: Proposed,
        batch_data_samples: Sequence[DetDataSample],
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first, and ``masks``.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: With image facts.
            rescale: Return boxes and masks in the frame of the original image.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        # Masks are cut from the feature maps, so that boxes stay in their frame until then.
        found = self._predict_bbox(x, proposals, metas, rescale and not self.with_mask)
        return self._predict_mask(x, found, metas, rescale) if self.with_mask else found

    def _predict_bbox(
        self, x: Sequence[Tensor], proposals: Proposals, metas: Sequence[Mapping[str, Any]], rescale: bool
    ) -> list[InstanceData]:
        outputs = self._bbox_forward(x, boxes_to_rois(proposals.boxes))
        scores = self.bbox_head.scores(outputs["cls_score"])
        return self.bbox_head.predict(proposals, scores, outputs["bbox_pred"], metas, self.test_cfg, rescale)

    def _predict_mask(
        self, x: Sequence[Tensor], found: list[InstanceData], metas: Sequence[Mapping[str, Any]], rescale: bool
    ) -> list[InstanceData]:
        mask_preds, _ = self._mask_forward(x, bbox2roi([one.bboxes for one in found]))
        split = mask_preds.split([len(one) for one in found])
        return self.mask_head.predict_by_feat(split, found, metas, self.test_cfg, rescale)
