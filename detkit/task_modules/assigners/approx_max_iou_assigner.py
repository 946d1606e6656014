"""Assignment by the highest IoU of a prior's shapes (Guided Anchoring, https://arxiv.org/abs/1901.03278, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.max_iou_assigner import MaxIoUAssigner

__all__ = ["ApproxMaxIoUAssigner"]


@TASK_UTILS.register_module()
class ApproxMaxIoUAssigner(MaxIoUAssigner):
    """As :class:`MaxIoUAssigner`, where a prior's overlap is the highest of its approximate shapes'.

    Args:
        pos_iou_thr: Least IoU of a positive.
        neg_iou_thr: IoU below which a prior is background, or the interval in which it is.
        min_pos_iou: Least IoU of a match that an object takes because it is its highest.
        gt_max_assign_all: Whether an object so takes all priors of equal highest IoU or only the first.
        ignore_iof_thr: Overlap with an ignored region above which a prior is ignored; off where <= 0.
        ignore_wrt_candidates: Whether that overlap is over the prior's area or the region's.
        match_low_quality: Whether an object takes the priors of its highest IoU.
        gpu_assign_thr: Accepted for MMDetection's configs; large products run in pieces on their device.
        iou_calculator: Registered IoU calculator.
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
    ) -> None:
        super().__init__(
            pos_iou_thr,
            neg_iou_thr,
            min_pos_iou,
            gt_max_assign_all,
            ignore_iof_thr,
            ignore_wrt_candidates,
            match_low_quality,
            gpu_assign_thr,
            iou_calculator,
        )

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        gt_instances_ignore: InstanceData | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the priors of one image.

        Args:
            pred_instances: With ``priors`` (A, 4), the square ones, and ``approxs`` (A, S, 4), S shapes of each.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: With ``bboxes`` (I, 4).
            kwargs: What other assigners use of an image; unused.
        """
        ground_truth = GroundTruth.from_instances([gt_instances], [gt_instances_ignore])
        priors, approxs = get_box_tensor(pred_instances.priors), get_box_tensor(pred_instances.approxs)
        batch = self.assign_batch(priors, ground_truth, approxs=approxs)
        return batch.image(0, len(gt_instances))

    @torch.no_grad()
    def assign_batch(  # type: ignore[override]  # each assigner names the inputs that it needs besides
        self, priors: Tensor, ground_truth: GroundTruth, prior_valid: Tensor | None = None, *, approxs: Tensor
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4); these are held against ignored regions.
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            approxs: (A, S, 4), S shapes of each prior, or (N, A, S, 4).
        """
        if approxs.shape[-3] != priors.shape[-2]:
            raise ValueError(
                f"ApproxMaxIoUAssigner: {priors.shape[-2]} priors, but approxs of shape {tuple(approxs.shape)}, "
                "expected (..., priors, shapes, 4)"
            )
        shapes = (approxs if approxs.dim() == 4 else approxs.unsqueeze(0)).unbind(2)

        def overlaps_of(piece: slice) -> Tensor:
            found = self.iou_calculator(ground_truth.boxes, shapes[0][:, piece])
            for shape in shapes[1:]:
                found = torch.maximum(found, self.iou_calculator(ground_truth.boxes, shape[:, piece]))
            return found

        return self.assign_by_overlaps(overlaps_of, priors, ground_truth, prior_valid)
