"""The second stage of SCNet, Vu et al., https://arxiv.org/abs/2012.10150."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.batch_statistics import outputs_of_sampled
from detkit.models.roi_heads.prediction import ROI_TEST_CFG_KEYS, RoITestCfg
from detkit.models.roi_heads.sampling import SampledRoIs, positive_rois
from detkit.models.roi_heads.semantic_fusion import add_semantic, check_semantic, semantic_loss
from detkit.models.roi_heads.stages import (
    OfStages,
    build_stages,
    check_stages,
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

__all__ = ["SCNetRoIHead"]

Cfg = Mapping[str, Any]
Proposed = Proposals | Sequence[InstanceData]


@MODELS.register_module()
class SCNetRoIHead(BaseModule):
    """A cascade of box heads with one mask head at its end, which learns from the boxes that it will be asked for.

    Regions get features of the whole image: a semantic head's, and a global context; masks get what the last box head
    made of their region. Each of the three can be left out. An argument of a stage may be a list of one for each, or
    one for all.

    Args:
        num_stages: Number of stages, >= 1.
        stage_loss_weights: What the losses of each stage are multiplied by, and that of the masks by their sum.
        semantic_roi_extractor: Registered RoI extractor of the semantic features.
        semantic_head: Registered head, levels to logits and features of one level, with a loss.
        feat_relay_head: Registered head, features of a region to a map.
        glbctx_head: Registered head, levels to logits and features of the whole image, with a loss.
        bbox_roi_extractor: Registered RoI extractors.
        bbox_head: Registered box heads with ``embed`` and ``outputs``.
        mask_roi_extractor: Registered RoI extractor of masks.
        mask_head: Registered mask head.
        train_cfg: List of one dict for each stage: ``assigner``, ``sampler``, ``pos_weight`` and ``mask_size``.
        test_cfg: ``score_thr``, ``nms``, ``max_per_img`` and ``mask_thr_binary``.
        init_cfg: Initialisation.

    Raises:
        TypeError: ``train_cfg`` is one dict.
        ValueError: A list of another length than ``num_stages``, or parts that do not fit each other.
    """

    train_cfg_keys = ROI_TRAIN_CFG_KEYS
    test_cfg_keys = ROI_TEST_CFG_KEYS

    def __init__(
        self,
        num_stages: int,
        stage_loss_weights: Sequence[float],
        semantic_roi_extractor: Cfg | None = None,
        semantic_head: Cfg | None = None,
        feat_relay_head: Cfg | None = None,
        glbctx_head: Cfg | None = None,
        *,
        bbox_roi_extractor: OfStages,
        bbox_head: OfStages,
        mask_roi_extractor: Cfg,
        mask_head: Cfg,
        train_cfg: Sequence[Cfg] | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        check_stages(stage_loss_weights, num_stages, f"{name}: stage_loss_weights")
        check_semantic(semantic_roi_extractor, semantic_head, name)
        self.num_stages = num_stages
        self.stage_loss_weights = stage_loss_weights
        # Which stage is at work, for samplers that run the head.
        self.current_stage = 0
        self.bbox_roi_extractor = build_stages(bbox_roi_extractor, num_stages, f"{name}: bbox_roi_extractor")
        self.bbox_head = build_stages(bbox_head, num_stages, f"{name}: bbox_head")
        wrong = [type(head).__name__ for head in self.bbox_head if not hasattr(head, "embed")]
        if wrong:
            raise ValueError(f"{name}: bbox_head: {wrong[0]} has no embed, which is relayed; use SCNetBBoxHead")
        self.mask_roi_extractor = MODELS.build(mask_roi_extractor)
        self.mask_head = MODELS.build(mask_head)
        self.with_semantic = semantic_head is not None
        self.with_glbctx = glbctx_head is not None
        self.with_feat_relay = feat_relay_head is not None
        if semantic_head is not None:
            self.semantic_roi_extractor = MODELS.build(semantic_roi_extractor)
            self.semantic_head = MODELS.build(semantic_head)
        if glbctx_head is not None:
            self.glbctx_head = MODELS.build(glbctx_head)
        if feat_relay_head is not None:
            self.feat_relay_head = MODELS.build(feat_relay_head)
        self.train_cfg = train_cfg_of_stages(train_cfg, self)
        self.test_cfg = RoITestCfg.of(test_cfg)

    def forward(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> tuple[Tensor, ...]:
        """Mean logits of the proposals, encoded boxes of the last stage, and mask logits of the first 100 boxes that it
        moved."""
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        x, _ = self._with_image(x)
        proposals, cls_score, bbox_pred = refine_through_stages(self.bbox_head, self._bbox_forward, x, proposals, metas)
        rois = boxes_to_rois(proposals.boxes)[:100]
        return cls_score, bbox_pred, self._mask_forward(x, rois, self._embedded(self.num_stages - 1, x, rois))

    def loss(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        """``s0.loss_cls``, ``s0.loss_bbox``, so of each stage, ``loss_mask``, ``loss_semantic_seg``, ``loss_glbctx``.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: Their annotations.
        """
        truth = GroundTruth.from_samples(batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        x, preds = self._with_image(x)
        losses: dict[str, Tensor] = {}
        if self.with_semantic:
            name = type(self).__name__
            losses["loss_semantic_seg"] = semantic_loss(self.semantic_head, preds[0], batch_data_samples, name)
        if self.with_glbctx:
            losses["loss_glbctx"] = self.glbctx_head.loss(preds[-1], truth)
        for stage, (head, train_cfg) in enumerate(zip(self.bbox_head, self.train_cfg, strict=True)):
            self.current_stage = stage
            sampled = train_cfg.sample(proposals, truth, head.num_classes, x)
            layers = [self.bbox_roi_extractor[stage], head]
            outputs = outputs_of_sampled(partial(self._bbox_forward, stage, x), layers, sampled)
            cls_score, bbox_pred = outputs["cls_score"], outputs["bbox_pred"]
            of_boxes = head.loss_and_target(cls_score, bbox_pred, sampled, train_cfg)["loss_bbox"]
            losses |= stage_losses(of_boxes, stage, self.stage_loss_weights[stage])
            if stage < self.num_stages - 1:
                proposals = head.refine(sampled, cls_score, bbox_pred, metas)
        return losses | self._mask_loss(x, outputs["shared_feat"], sampled, batch_data_samples)

    def _with_image(self, x: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Tensor]]:
        """The levels and, after them, the semantic features and the global context, where there are; and the logits
        of these two."""
        heads = [self.semantic_head] if self.with_semantic else []
        heads += [self.glbctx_head] if self.with_glbctx else []
        found = [head(x) for head in heads]
        return (*x, *(feat for _, feat in found)), [pred for pred, _ in found]

    def _fused(self, feats: Tensor, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Features of RoIs with those of the image, see :meth:`_with_image`."""
        if self.with_semantic:
            semantic = x[-2] if self.with_glbctx else x[-1]
            feats = add_semantic(feats, semantic, rois, self.semantic_roi_extractor)
        if self.with_glbctx:
            feats = feats + x[-1][rois[:, 0].long()]
        return feats

    def _embedded(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """What a stage's box head makes of RoIs (R, 5) for both tasks."""
        extractor = self.bbox_roi_extractor[stage]
        return self.bbox_head[stage].embed(self._fused(extractor(x[: extractor.num_inputs], rois), x, rois))

    def _bbox_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Outputs of a stage's box head for RoIs (R, 5), and what it made of them."""
        shared = self._embedded(stage, x, rois)
        cls_score, bbox_pred = self.bbox_head[stage].outputs(shared)
        return {"cls_score": cls_score, "bbox_pred": bbox_pred, "shared_feat": shared}

    def _mask_forward(self, x: Sequence[Tensor], rois: Tensor, shared: Tensor) -> Tensor:
        """Mask logits of RoIs (K, 5), of which the last box head made ``shared`` (K, D)."""
        extractor = self.mask_roi_extractor
        feats = self._fused(extractor(x[: extractor.num_inputs], rois), x, rois)
        return self.mask_head(feats + self.feat_relay_head(shared) if self.with_feat_relay else feats)

    def _mask_loss(
        self, x: Sequence[Tensor], shared: Tensor, sampled: SampledRoIs, batch_data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        positives = positive_rois([sampled])[0]
        mask_preds = self._mask_forward(x, positives.rois, shared[positives.place])
        masks = [sample.gt_instances.masks for sample in batch_data_samples]
        losses = self.mask_head.loss_and_target(mask_preds, positives, masks, self.train_cfg[-1])["loss_mask"]
        return {name: value * sum(self.stage_loss_weights) for name, value in losses.items()}

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
        x, _ = self._with_image(x)
        proposals, cls_score, bbox_pred = refine_through_stages(self.bbox_head, self._bbox_forward, x, proposals, metas)
        last = self.bbox_head[-1]
        # Masks are cut from the feature maps, so that boxes stay in their frame until then.
        found = last.predict(proposals, last.scores(cls_score), bbox_pred, metas, self.test_cfg, rescale=False)
        rois = bbox2roi([one.bboxes for one in found])
        mask_preds = self._mask_forward(x, rois, self._embedded(self.num_stages - 1, x, rois))
        split = mask_preds.split([len(one) for one in found])
        return self.mask_head.predict_by_feat(split, found, metas, self.test_cfg, rescale)
