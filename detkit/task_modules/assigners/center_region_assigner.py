"""Assignment to the centre of an object, with a shadow around it (FSAF, https://arxiv.org/abs/1903.00621, 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import bbox_xyxy_to_cxcywh, get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.candidates import inside_boxes
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["IN_SHADOW", "OUTRANKED", "CenterRegionAssigner"]

# Why an object shadows a prior: it is in the shadow, or it is in the core but learns another object.
IN_SHADOW = 1
OUTRANKED = 2


@TASK_UTILS.register_module()
class CenterRegionAssigner:
    """A prior in the core of an object learns it; one in its shadow must not learn the contrary.

    1. The core of an object is its box scaled by ``pos_scale``, its shadow the box scaled by ``neg_scale``. A prior
       is in one if more than ``min_pos_iof`` of its area is; in a core only if its centre is inside the object too.
    2. A prior learns the smallest of the objects in whose core it is (of equal ones the last).
    3. It is shadowed by an object in whose shadow it is but not in its core, and by one in whose core it is but
       does not learn: the score of such an object's class is to have no loss there.
    4. A prior shadowed by an object of the class it learns becomes background, or with ``foreground_dominate``
       keeps its object and loses that shadow.
    5. A prior whose centre is inside an ignored region scaled by ``ignore_gt_scale`` is ignored.
    6. All others are background.

    Args:
        pos_scale: Size of the core.
        neg_scale: Size of the shadow.
        min_pos_iof: Share of a prior's area above which it is in a core or shadow.
        ignore_gt_scale: Scale of ignored regions.
        foreground_dominate: Whether learning wins over being shadowed.
        iou_calculator: Registered IoU calculator.

    Raises:
        ValueError: The core is larger than the shadow, or a scale is negative.
    """

    def __init__(
        self,
        pos_scale: float,
        neg_scale: float,
        min_pos_iof: float = 1e-2,
        ignore_gt_scale: float = 0.5,
        foreground_dominate: bool = False,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0 <= pos_scale <= neg_scale:
            raise ValueError(
                "CenterRegionAssigner: expected 0 <= pos_scale <= neg_scale, "
                f"got pos_scale={pos_scale!r} and neg_scale={neg_scale!r}"
            )
        self.pos_scale = pos_scale
        self.neg_scale = neg_scale
        self.min_pos_iof = min_pos_iof
        self.ignore_gt_scale = ignore_gt_scale
        self.foreground_dominate = foreground_dominate
        self.iou_calculator = TASK_UTILS.build(iou_calculator or {"type": "BboxOverlaps2D"})

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the priors of one image.

        Args:
            pred_instances: With ``priors`` (A, 4).
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: With ``bboxes`` (I, 4).
            kwargs: What other assigners use of an image; unused.

        Returns:
            The assignment; its extra property ``shadowed_labels`` (S, 2) has prior and label of each pair of
            rule 3, those in a shadow before those in a core.
        """
        ground_truth = GroundTruth.from_instances([gt_instances], [gt_instances_ignore])
        batch = self.assign_batch(get_box_tensor(pred_instances.priors), ground_truth)
        result = batch.image(0, len(gt_instances))
        assert batch.extra is not None
        shadowed = batch.extra["shadowed"][0]
        pairs = torch.cat([(shadowed == IN_SHADOW).nonzero(), (shadowed == OUTRANKED).nonzero()])
        labels = ground_truth.labels[0][pairs[:, 1]]
        result.set_extra_property("shadowed_labels", torch.stack([pairs[:, 0], labels], dim=1))
        return result

    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.

        Returns:
            The assignment, without ``max_overlaps``. Its ``extra`` has ``shadowed`` (N, A, G) int8: ``IN_SHADOW``
            or ``OUTRANKED`` where an object shadows a prior, 0 elsewhere.
        """
        batch_size, num_gts = ground_truth.valid.shape
        (priors,) = full_precision(priors.expand(batch_size, *priors.shape[-2:]))
        rank = _rank_by_area(ground_truth.boxes)
        gt_inds = torch.zeros(priors.shape[:2], dtype=torch.int64, device=priors.device)
        shadowed = torch.zeros(*priors.shape[:2], num_gts, dtype=torch.int8, device=priors.device)
        for piece in chunk_slices(priors.shape[1], batch_size * num_gts, priors.device):
            gt_inds[:, piece], shadowed[:, piece] = self._assign_some(priors[:, piece], ground_truth, rank)
        if prior_valid is not None:
            gt_inds = torch.where(prior_valid, gt_inds, IGNORED)
            shadowed = shadowed * prior_valid.unsqueeze(2)
        return BatchAssignResult(gt_inds, None, ground_truth.labels_at(gt_inds), extra={"shadowed": shadowed})

    def _assign_some(self, priors: Tensor, ground_truth: GroundTruth, rank: Tensor) -> tuple[Tensor, Tensor]:
        """``gt_inds`` (N, a) and ``shadowed`` (N, a, G) of priors (N, a, 4)."""
        boxes, valid = ground_truth.boxes, ground_truth.valid.unsqueeze(1)
        x, y, _, _ = bbox_xyxy_to_cxcywh(priors).unsqueeze(2).unbind(-1)
        in_core = self._is_within(priors, _scaled(boxes, self.pos_scale)) & valid
        same = self.neg_scale == self.pos_scale
        in_shadow = in_core if same else self._is_within(priors, _scaled(boxes, self.neg_scale)) & valid
        in_core = in_core & inside_boxes(x, y, boxes.unsqueeze(1))
        in_shadow = in_shadow & ~in_core

        gt_inds = priors.new_full(priors.shape[:2], BACKGROUND, dtype=torch.int64)
        outranked = in_core
        if boxes.shape[1] > 0:
            highest, best = torch.where(in_core, rank.unsqueeze(1), -1).max(dim=2)
            gt_inds = torch.where(highest >= 0, best + 1, gt_inds)
            outranked = in_core & (rank.unsqueeze(1) != highest.unsqueeze(2))
        regions = _scaled(ground_truth.ignored_boxes, self.ignore_gt_scale)
        in_region = (inside_boxes(x, y, regions.unsqueeze(1)) & ground_truth.ignored_valid.unsqueeze(1)).any(dim=2)
        gt_inds = torch.where(in_region, IGNORED, gt_inds)

        shadowed = (in_shadow.to(torch.int8) * IN_SHADOW).masked_fill(outranked, OUTRANKED)
        labels = ground_truth.labels_at(gt_inds)
        contrary = (labels.unsqueeze(2) == ground_truth.labels.unsqueeze(1)) & (shadowed > 0)
        if self.foreground_dominate:
            shadowed = shadowed.masked_fill(contrary, 0)
        else:
            gt_inds = torch.where(contrary.any(dim=2), BACKGROUND, gt_inds)
        return gt_inds, shadowed

    def _is_within(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """Whether enough of a prior's area is in a box, (N, a, G)."""
        return self.iou_calculator(priors, boxes, mode="iof") > self.min_pos_iof


def _scaled(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (N, G, 4) scaled about their centres."""
    half = (boxes[..., 2:] - boxes[..., :2]) * 0.5 * scale
    centre = (boxes[..., 2:] + boxes[..., :2]) * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def _rank_by_area(boxes: Tensor) -> Tensor:
    """Ranks (N, G) of boxes, smaller ones higher, of equal ones the last; padding is below all."""
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return area.sort(dim=1, descending=True, stable=True).indices.argsort(dim=1).int()
