"""The second stage of Cascade R-CNN and Cascade Mask R-CNN, Cai and Vasconcelos, https://arxiv.org/abs/1906.09756."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.batch_statistics import outputs_of_sampled
from detkit.models.roi_heads.prediction import ROI_TEST_CFG_KEYS, RoITestCfg
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.models.roi_heads.stages import (
    OfStages,
    build_stages,
    check_stages,
    mask_losses,
    refine_through_stages,
    stage_losses,
    train_cfg_of_stages,
)
from detkit.models.roi_heads.train_cfg import ROI_TRAIN_CFG_KEYS
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox2roi
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.proposals import Proposals, boxes_to_rois

__all__ = ["CascadeRoIHead"]

Cfg = Mapping[str, Any]
Proposed = Proposals | Sequence[InstanceData]
Metas = Sequence[Mapping[str, Any]]


@MODELS.register_module()
class CascadeRoIHead(BaseModule):
    """Stages that each classify the boxes of the one before and move them on, learning from closer and closer ones.

    An argument of a stage may be a list of one for each, or one for all.

    Args:
        num_stages: Number of stages, >= 1.
        stage_loss_weights: What the losses of each stage are multiplied by.
        bbox_roi_extractor: Registered RoI extractors.
        bbox_head: Registered box heads.
        mask_roi_extractor: Registered RoI extractors of masks; None uses those of the boxes.
        mask_head: Registered mask heads; None has no masks.
        train_cfg: List of one dict for each stage: ``assigner``, ``sampler``, ``pos_weight`` and ``mask_size``.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: Initialisation.

    Raises:
        TypeError: ``train_cfg`` is one dict.
        ValueError: A list of another length than ``num_stages``.
    """

    train_cfg_keys = ROI_TRAIN_CFG_KEYS
    test_cfg_keys = ROI_TEST_CFG_KEYS

    def __init__(
        self,
        num_stages: int,
        stage_loss_weights: Sequence[float],
        bbox_roi_extractor: OfStages,
        bbox_head: OfStages,
        mask_roi_extractor: OfStages | None = None,
        mask_head: OfStages | None = None,
        train_cfg: Sequence[Cfg] | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        check_stages(stage_loss_weights, num_stages, f"{name}: stage_loss_weights")
        self.num_stages = num_stages
        self.stage_loss_weights = stage_loss_weights
        # Which stage is at work, for samplers that run the head.
        self.current_stage = 0
        self.bbox_roi_extractor = build_stages(bbox_roi_extractor, num_stages, f"{name}: bbox_roi_extractor")
        self.bbox_head = build_stages(bbox_head, num_stages, f"{name}: bbox_head")
        self.with_mask = mask_head is not None
        self.share_roi_extractor = self.with_mask and mask_roi_extractor is None
        if mask_head is not None:
            if mask_roi_extractor is not None:
                self.mask_roi_extractor = build_stages(mask_roi_extractor, num_stages, f"{name}: mask_roi_extractor")
            self.mask_head = build_stages(mask_head, num_stages, f"{name}: mask_head")
        self.train_cfg = train_cfg_of_stages(train_cfg, self)
        self.test_cfg = RoITestCfg.of(test_cfg)

    def forward(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> tuple[Tensor, ...]:
        """Mean logits of the proposals and encoded boxes of the last stage and, where there are mask heads, the mean
        probabilities of masks of the first 100 boxes that it moved."""
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        proposals, cls_score, bbox_pred = refine_through_stages(self.bbox_head, self._bbox_forward, x, proposals, metas)
        masks = (self._mask_probabilities(x, boxes_to_rois(proposals.boxes)[:100]),) if self.with_mask else ()
        return cls_score, bbox_pred, *masks

    def loss(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        """``s0.loss_cls``, ``s0.loss_bbox`` and, where there are mask heads, ``s0.loss_mask``; so of each stage.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: Their annotations.
        """
        truth = GroundTruth.from_samples(batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        of_boxes: list[Mapping[str, Tensor]] = []
        samples: list[SampledRoIs] = []
        for stage, (head, train_cfg) in enumerate(zip(self.bbox_head, self.train_cfg, strict=True)):
            self.current_stage = stage
            sampled = train_cfg.sample(proposals, truth, head.num_classes, x)
            layers = [self.bbox_roi_extractor[stage], head]
            outputs = outputs_of_sampled(partial(self._bbox_forward, stage, x), layers, sampled)
            cls_score, bbox_pred = outputs["cls_score"], outputs["bbox_pred"]
            of_boxes.append(head.loss_and_target(cls_score, bbox_pred, sampled, train_cfg)["loss_bbox"])
            samples.append(sampled)
            if stage < self.num_stages - 1:
                proposals = head.refine(sampled, cls_score, bbox_pred, metas)
        of_masks: Sequence[Mapping[str, Tensor]] = [{}] * self.num_stages
        if self.with_mask:
            of_masks = mask_losses(self.mask_head, self.train_cfg, self._mask_forward, x, samples, batch_data_samples)
        losses: dict[str, Tensor] = {}
        for stage, masks in enumerate(of_masks):
            losses |= stage_losses({**of_boxes[stage], **masks}, stage, self.stage_loss_weights[stage])
        return losses

    def _bbox_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Outputs of a stage's box head for RoIs (R, 5), and the features they are made of."""
        extractor = self.bbox_roi_extractor[stage]
        feats = extractor(x[: extractor.num_inputs], rois)
        cls_score, bbox_pred = self.bbox_head[stage](feats)
        return {"cls_score": cls_score, "bbox_pred": bbox_pred, "bbox_feats": feats}

    def _mask_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Mask logits of a stage for RoIs (K, 5)."""
        extractor = (self.bbox_roi_extractor if self.share_roi_extractor else self.mask_roi_extractor)[stage]
        return self.mask_head[stage](extractor(x[: extractor.num_inputs], rois))

    def predict(
        self,
        x: Sequence[Tensor],
        rpn_results_list: Proposed,
        batch_data_samples: Sequence[DetDataSample],
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first, and ``masks``.

        Logits are the mean of all stages, boxes are of the last; masks are the mean of all stages.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: With image facts.
            rescale: Return boxes and masks in the frame of the original image.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        proposals, cls_score, bbox_pred = refine_through_stages(self.bbox_head, self._bbox_forward, x, proposals, metas)
        last = self.bbox_head[-1]
        # Masks are cut from the feature maps, so that boxes stay in their frame until then.
        resize = rescale and not self.with_mask
        found = last.predict(proposals, last.scores(cls_score), bbox_pred, metas, self.test_cfg, resize)
        return self._predict_mask(x, found, metas, rescale) if self.with_mask else found

    def _mask_probabilities(self, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Probabilities of masks for RoIs (K, 5), the mean of all stages."""
        stages = [self._mask_forward(stage, x, rois).float().sigmoid() for stage in range(self.num_stages)]
        return torch.stack(stages).mean(dim=0)

    def _predict_mask(
        self, x: Sequence[Tensor], found: list[InstanceData], metas: Metas, rescale: bool
    ) -> list[InstanceData]:
        probabilities = self._mask_probabilities(x, bbox2roi([one.bboxes for one in found]))
        split = probabilities.split([len(one) for one in found])
        return self.mask_head[-1].predict_by_feat(split, found, metas, self.test_cfg, rescale, activate_map=True)
