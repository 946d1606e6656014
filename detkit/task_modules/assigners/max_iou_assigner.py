"""Assignment by highest IoU (Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.signature import check_arguments
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.ignored_regions import in_ignored_region
from detkit.task_modules.assigners.overlap_rules import EXCLUDED, OverlapRules, negative_interval
from detkit.task_modules.assigners.repeated_boxes import jitter_repeated

__all__ = ["MaxIoUAssigner"]


@TASK_UTILS.register_module()
class MaxIoUAssigner:
    """Each prior learns the object it overlaps most.

    1. A prior whose highest IoU is below ``neg_iou_thr`` (or inside ``[lo, hi)``) is background.
    2. One whose highest IoU is at least ``pos_iou_thr`` learns that object.
    3. With ``match_low_quality``, each object also takes the priors it overlaps most, if by at least
        ``min_pos_iou``; of several objects the last wins.
    4. All others are ignored, and so are priors inside an ignored region; by rule 3 an object then takes its best
        priors outside. With ``min_pos_iou`` 0, an object that overlaps nothing takes by rule 3 every prior.

    Args:
        pos_iou_thr: Least IoU of a positive.
        neg_iou_thr: IoU below which a prior is background, or the interval in which it is.
        min_pos_iou: Least IoU of a match by rule 3.
        gt_max_assign_all: Whether rule 3 takes all priors of equal highest IoU or only the first.
        ignore_iof_thr: Overlap with an ignored region above which a prior is ignored; off where <= 0.
        ignore_wrt_candidates: Whether that overlap is over the prior's area or the region's.
        match_low_quality: Whether rule 3 applies.
        gpu_assign_thr: Accepted for MMDetection's configs; large products run in chunks on their device.
        iou_calculator: Registered IoU calculator.
        perm_repeat_gt_cfg: ``iou_thr`` and ``perm_range`` of :func:`jitter_repeated`, which moves equal boxes
            apart so that each gets priors; None leaves them equal, and one of them gets nearly all.
        reassign_low_quality: Whether a prior that rule 3 takes learns that object, or, as in Detectron2 and
            torchvision, the object it overlaps most.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | Sequence[float],
        min_pos_iou: float = 0.0,
        gt_max_assign_all: bool = True,
        ignore_iof_thr: float = -1,
        ignore_wrt_candidates: bool = True,
        match_low_quality: bool = True,
        gpu_assign_thr: float = -1,
        iou_calculator: Mapping[str, Any] | None = None,
        perm_repeat_gt_cfg: Mapping[str, float] | None = None,
        reassign_low_quality: bool = True,
    ) -> None:
        negative_interval(type(self).__name__, neg_iou_thr, pos_iou_thr)
        self.pos_iou_thr = pos_iou_thr
        self.neg_iou_thr = neg_iou_thr
        self.min_pos_iou = min_pos_iou
        self.gt_max_assign_all = gt_max_assign_all
        self.match_low_quality = match_low_quality
        self.ignore_iof_thr = ignore_iof_thr
        self.ignore_wrt_candidates = ignore_wrt_candidates
        self.gpu_assign_thr = gpu_assign_thr
        self.perm_repeat_gt_cfg = perm_repeat_gt_cfg
        self.reassign_low_quality = reassign_low_quality
        if perm_repeat_gt_cfg is not None:
            check_arguments(jitter_repeated, {"boxes", *perm_repeat_gt_cfg}, "MaxIoUAssigner.perm_repeat_gt_cfg")
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
        """
        ground_truth = GroundTruth.from_instances([gt_instances], [gt_instances_ignore])
        return self.assign_batch(get_box_tensor(pred_instances.priors), ground_truth).image(0, len(gt_instances))

    @torch.no_grad()
    def assign_batch(
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
        """
        gt_boxes = ground_truth.boxes
        if self.perm_repeat_gt_cfg is not None:
            gt_boxes = jitter_repeated(gt_boxes, **self.perm_repeat_gt_cfg)
        by_coordinate = (priors if priors.dim() == 3 else priors.unsqueeze(0)).transpose(1, 2).contiguous()

        def overlaps_of(piece: slice) -> Tensor:
            return self.iou_calculator(gt_boxes, by_coordinate[..., piece].transpose(1, 2))

        return self.assign_by_overlaps(overlaps_of, priors, ground_truth, prior_valid)

    def assign_by_overlaps(
        self,
        overlaps_of: Callable[[slice], Tensor],
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None,
    ) -> BatchAssignResult:
        """The rules over any overlaps.

        Args:
            overlaps_of: Overlaps (N, G, a) of the objects with a slice of the priors, in memory of their own.
            priors: (A, 4) or (N, A, 4); these are held against ignored regions.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all.
        """
        num_priors = priors.shape[-2]
        priors = priors if priors.dim() == 3 else priors.unsqueeze(0)
        valid = ground_truth.valid
        taking_part = valid.new_ones(len(valid), num_priors) if prior_valid is None else prior_valid
        padded = ~valid.unsqueeze(2)

        def overlaps() -> Iterator[Tensor]:
            for piece in chunk_slices(num_priors, valid.numel(), priors.device):
                found = overlaps_of(piece).masked_fill_(padded, EXCLUDED)
                inside = in_ignored_region(
                    priors[:, piece], ground_truth, self.ignore_iof_thr, self.iou_calculator, self.ignore_wrt_candidates
                )
                if inside is not None:
                    found.masked_fill_(inside.unsqueeze(1), EXCLUDED)
                if prior_valid is not None:
                    found.masked_fill_(~prior_valid[:, piece].unsqueeze(1), EXCLUDED)
                yield found

        # Made anew, for Dynamic R-CNN changes the thresholds while it trains.
        rules = OverlapRules(
            self.pos_iou_thr,
            negative_interval(type(self).__name__, self.neg_iou_thr, self.pos_iou_thr),
            self.min_pos_iou,
            self.gt_max_assign_all,
            self.match_low_quality,
            self.reassign_low_quality,
        )
        return rules.assign(overlaps, ground_truth, taking_part)
