"""The second stage of Hybrid Task Cascade, Chen et al., https://arxiv.org/abs/1901.07518."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.batch_statistics import outputs_of_sampled
from detkit.models.roi_heads.prediction import ROI_TEST_CFG_KEYS, RoITestCfg
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.models.roi_heads.semantic_fusion import add_semantic, check_semantic, semantic_loss
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

__all__ = ["HybridTaskCascadeRoIHead"]

Cfg = Mapping[str, Any]
Proposed = Proposals | Sequence[InstanceData]
FUSIONS = ("bbox", "mask")


@MODELS.register_module()
class HybridTaskCascadeRoIHead(BaseModule):
    """A cascade whose masks see the boxes of their own stage and the masks of the stages before.

    A semantic head may look at the whole image; its features are added to those of the regions. An argument of a
    stage may be a list of one for each, or one for all.

    Args:
        num_stages: Number of stages, >= 1.
        stage_loss_weights: What the losses of each stage are multiplied by.
        semantic_roi_extractor: Registered RoI extractor of the semantic features.
        semantic_head: Registered head, levels to logits and features of one level, with a loss; None has none.
        semantic_fusion: Whose features the semantic ones are added to, of ``bbox`` and ``mask``.
        interleaved: Let the masks of a stage learn from the boxes that it moved, not from those that it got.
        mask_info_flow: Let the mask heads take up what those before made of a region; they need ``embed``.
        bbox_roi_extractor: Registered RoI extractors.
        bbox_head: Registered box heads.
        mask_roi_extractor: Registered RoI extractors of masks.
        mask_head: Registered mask heads.
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
        semantic_fusion: Collection[str] = FUSIONS,
        interleaved: bool = True,
        mask_info_flow: bool = True,
        *,
        bbox_roi_extractor: OfStages,
        bbox_head: OfStages,
        mask_roi_extractor: OfStages,
        mask_head: OfStages,
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
        self.interleaved = interleaved
        self.mask_info_flow = mask_info_flow
        self.bbox_roi_extractor = build_stages(bbox_roi_extractor, num_stages, f"{name}: bbox_roi_extractor")
        self.bbox_head = build_stages(bbox_head, num_stages, f"{name}: bbox_head")
        self.mask_roi_extractor = build_stages(mask_roi_extractor, num_stages, f"{name}: mask_roi_extractor")
        self.mask_head = build_stages(mask_head, num_stages, f"{name}: mask_head")
        self._check_mask_heads(name)
        self._build_semantic(name, semantic_roi_extractor, semantic_head, semantic_fusion)
        self.train_cfg = train_cfg_of_stages(train_cfg, self)
        self.test_cfg = RoITestCfg.of(test_cfg)

    def _check_mask_heads(self, name: str) -> None:
        for stage, head in enumerate(self.mask_head):
            if self.mask_info_flow and not hasattr(head, "embed"):
                raise ValueError(
                    f"{name}: mask_head[{stage}]: {type(head).__name__} has no embed, which a next stage takes up; "
                    "use HTCMaskHead, or mask_info_flow=False"
                )
            takes_up = getattr(head, "conv_res", None) is not None
            if hasattr(head, "conv_res") and takes_up != (self.mask_info_flow and stage > 0):
                before = "comes after another" if stage > 0 else "has none before it"
                raise ValueError(
                    f"{name}: mask_head[{stage}].with_conv_res must be {not takes_up}: the stage {before}, and "
                    f"mask_info_flow is {self.mask_info_flow}"
                )

    def _build_semantic(self, name: str, extractor: Cfg | None, head: Cfg | None, fusion: Collection[str]) -> None:
        wrong = [one for one in fusion if one not in FUSIONS]
        if isinstance(fusion, str) or wrong:
            raise ValueError(f"{name}: semantic_fusion names of 'bbox' and 'mask' were expected, got {fusion!r}")
        check_semantic(extractor, head, name)
        self.semantic_fusion = tuple(fusion)
        self.with_semantic = head is not None
        if head is not None:
            self.semantic_roi_extractor = MODELS.build(extractor)
            self.semantic_head = MODELS.build(head)

    def forward(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> tuple[Tensor, ...]:
        """Mean logits of the proposals, encoded boxes of the last stage, and the last stage's mask logits of the first
        100 boxes that it moved."""
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        x = self._with_semantic(x)[0]
        proposals, cls_score, bbox_pred = refine_through_stages(self.bbox_head, self._bbox_forward, x, proposals, metas)
        mask_preds = self._mask_forward(self.num_stages - 1, x, boxes_to_rois(proposals.boxes)[:100])
        return cls_score, bbox_pred, mask_preds

    def loss(
        self, x: Sequence[Tensor], rpn_results_list: Proposed, batch_data_samples: Sequence[DetDataSample]
    ) -> dict[str, Tensor]:
        """``s0.loss_cls``, ``s0.loss_bbox`` and ``s0.loss_mask``, so of each stage, and ``loss_semantic_seg``.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: Their annotations.
        """
        truth = GroundTruth.from_samples(batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        x, semantic_pred = self._with_semantic(x)
        losses: dict[str, Tensor] = {}
        if semantic_pred is not None:
            losses["loss_semantic_seg"] = semantic_loss(
                self.semantic_head, semantic_pred, batch_data_samples, type(self).__name__
            )
        of_boxes: list[Mapping[str, Tensor]] = []
        samples: list[SampledRoIs] = []
        for stage, (head, train_cfg) in enumerate(zip(self.bbox_head, self.train_cfg, strict=True)):
            self.current_stage = stage
            sampled = train_cfg.sample(proposals, truth, head.num_classes, x)
            layers = [self.bbox_roi_extractor[stage], head]
            outputs = outputs_of_sampled(partial(self._bbox_forward, stage, x), layers, sampled)
            cls_score, bbox_pred = outputs["cls_score"], outputs["bbox_pred"]
            of_boxes.append(head.loss_and_target(cls_score, bbox_pred, sampled, train_cfg)["loss_bbox"])
            proposals = head.refine(sampled, cls_score, bbox_pred, metas)
            # Masks learn from the boxes that they are predicted for: those that this stage has moved.
            moved = train_cfg.sample(proposals, truth, head.num_classes, x) if self.interleaved else sampled
            samples.append(moved)
        of_masks = mask_losses(self.mask_head, self.train_cfg, self._mask_forward, x, samples, batch_data_samples)
        for stage, masks in enumerate(of_masks):
            losses |= stage_losses({**of_boxes[stage], **masks}, stage, self.stage_loss_weights[stage])
        return losses

    def _with_semantic(self, x: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor | None]:
        """The levels and, after them, the semantic features; and the semantic logits."""
        if not self.with_semantic:
            return x, None
        pred, feat = self.semantic_head(x)
        return (*x, feat), pred

    def _fused(self, feats: Tensor, x: Sequence[Tensor], rois: Tensor, name: str) -> Tensor:
        """Features of RoIs with their semantic ones, where ``name`` is among those that have them."""
        if not self.with_semantic or name not in self.semantic_fusion:
            return feats
        return add_semantic(feats, x[-1], rois, self.semantic_roi_extractor)

    def _bbox_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """Outputs of a stage's box head for RoIs (R, 5)."""
        extractor = self.bbox_roi_extractor[stage]
        feats = self._fused(extractor(x[: extractor.num_inputs], rois), x, rois, "bbox")
        cls_score, bbox_pred = self.bbox_head[stage](feats)
        return {"cls_score": cls_score, "bbox_pred": bbox_pred}

    def _mask_forward(self, stage: int, x: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Mask logits of a stage for RoIs (K, 5), which the stages before look at too."""
        extractor = self.mask_roi_extractor[stage]
        feats = self._fused(extractor(x[: extractor.num_inputs], rois), x, rois, "mask")
        if not self.mask_info_flow:
            return self.mask_head[stage](feats)
        before = None
        for head in self.mask_head[:stage]:
            before = head.embed(feats, before)
        return self.mask_head[stage](feats, before)

    def predict(
        self,
        x: Sequence[Tensor],
        rpn_results_list: Proposed,
        batch_data_samples: Sequence[DetDataSample],
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first, and ``masks``.

        Logits are the mean of all stages; boxes and masks are of the last, as in MMDetection 3.

        Args:
            x: Levels (N, C, H_l, W_l).
            rpn_results_list: Proposals of N images.
            batch_data_samples: With image facts.
            rescale: Return boxes and masks in the frame of the original image.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = Proposals.of(rpn_results_list)
        x = self._with_semantic(x)[0]
        proposals, cls_score, bbox_pred = refine_through_stages(self.bbox_head, self._bbox_forward, x, proposals, metas)
        last = self.bbox_head[-1]
        # Masks are cut from the feature maps, so that boxes stay in their frame until then.
        found = last.predict(proposals, last.scores(cls_score), bbox_pred, metas, self.test_cfg, rescale=False)
        mask_preds = self._mask_forward(self.num_stages - 1, x, bbox2roi([one.bboxes for one in found]))
        split = mask_preds.split([len(one) for one in found])
        return self.mask_head[-1].predict_by_feat(split, found, metas, self.test_cfg, rescale)
