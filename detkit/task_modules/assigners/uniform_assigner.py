"""Equally many positives for each object, large or small (YOLOF, https://arxiv.org/abs/2103.09460, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import bbox_xyxy_to_cxcywh, get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.assigners.overlap_rules import EXCLUDED

__all__ = ["UniformAssigner"]


@TASK_UTILS.register_module()
class UniformAssigner:
    """Each object takes its nearest priors and its nearest predictions.

    1. A prior whose predicted box overlaps any object by more than ``neg_ignore_thr`` is ignored, else background.
    2. Each object's candidates are the ``match_times`` predicted boxes and as many priors nearest to it by L1
       distance of centre and size. A candidate is positive, whatever rule 1 says of it, unless its prior overlaps
       the object by less than ``pos_ignore_thr``; then it is ignored. Of several claims on a prior the last
       counts, in the order of :attr:`BatchAssignResult.extra`.

    Ignored regions do not count.

    Args:
        pos_ignore_thr: Least IoU of a positive's prior with its object.
        neg_ignore_thr: Most IoU of a negative's predicted box with any object.
        match_times: Nearest boxes of each kind that an object takes.
        iou_calculator: Registered IoU calculator.
    """

    def __init__(
        self,
        pos_ignore_thr: float,
        neg_ignore_thr: float,
        match_times: int = 4,
        iou_calculator: Mapping[str, Any] | None = None,
    ) -> None:
        if match_times < 1:
            raise ValueError(f"UniformAssigner: match_times must be at least 1, got {match_times}")
        self.pos_ignore_thr = pos_ignore_thr
        self.neg_ignore_thr = neg_ignore_thr
        self.match_times = match_times
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
            pred_instances: With ``priors`` (A, 4) and ``decoder_priors`` (A, 4), the predicted boxes.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            gt_instances_ignore: Unused.
            kwargs: What other assigners use of an image; unused.

        Returns:
            The assignment; ``max_overlaps`` (G,) are the objects' highest IoUs with a prior, and the extra
            properties are those of :meth:`assign_batch`.
        """
        ground_truth = GroundTruth.from_instances([gt_instances])
        priors, predicted = get_box_tensor(pred_instances.priors), get_box_tensor(pred_instances.decoder_priors)
        batch = self.assign_batch(priors, ground_truth, decoder_priors=predicted.unsqueeze(0))
        result = batch.image(0, len(gt_instances))
        assert batch.extra is not None
        for name in ("pos_idx", "pos_predicted_boxes", "target_boxes"):
            result.set_extra_property(name, batch.extra[name][0])
        empty = result.num_gts == 0 or result.num_preds == 0
        result.max_overlaps = None if empty else batch.extra["gt_max_overlaps"][0]
        return result

    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        decoder_priors: Tensor,
    ) -> BatchAssignResult:
        """Assign the priors of N images.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which priors take part; None is all. The others are ignored.
            decoder_priors: (N, A, 4) predicted boxes.

        Returns:
            The assignment, without ``max_overlaps``. Its ``extra`` has, for C = 2 * ``match_times`` * G candidates
            (the k-th nearest prediction of each object, the k-th nearest prior of each, then those of k + 1):
            ``pos_idx`` (N, C) bool, which of them are positive; ``pos_predicted_boxes`` (N, C, 4), which carry
            gradient; ``target_boxes`` (N, C, 4), their objects. And ``gt_max_overlaps`` (N, G), the highest IoU of
            an object with a prior.
        """
        predicted = full_precision(decoder_priors)[0]
        batch_size, num_priors = predicted.shape[:2]
        num_gts = ground_truth.valid.shape[1]
        priors = priors.to(predicted.dtype).expand(batch_size, num_priors, 4)
        taking_part = priors.new_ones(batch_size, num_priors, dtype=torch.bool) if prior_valid is None else prior_valid
        gt_inds = torch.where(taking_part, BACKGROUND, IGNORED)
        if num_gts > 0 and num_priors > 0:
            gt_inds = gt_inds.masked_fill(self._overlapping(predicted.detach(), ground_truth), IGNORED)

        times = min(self.match_times, num_priors)
        candidates = torch.stack(  # (N, times, 2, G)
            [_nearest(boxes, ground_truth, taking_part, times) for boxes in (predicted.detach(), priors)], dim=2
        ).flatten(1)
        own_gt = torch.arange(num_gts, device=priors.device).repeat(2 * times).expand(batch_size, -1)
        target_boxes, counts = _rows(ground_truth.boxes, own_gt), ground_truth.valid.gather(1, own_gt)
        counts = counts & taking_part.gather(1, candidates)
        overlaps = self.iou_calculator(_rows(priors, candidates), target_boxes, is_aligned=True)
        positive = counts & (overlaps >= self.pos_ignore_thr)
        claims = torch.where(positive, own_gt + 1, IGNORED)
        gt_inds = _last_claim(gt_inds, candidates, claims, counts)
        extra = {
            "pos_idx": positive,
            "pos_predicted_boxes": _rows(predicted, candidates),
            "target_boxes": target_boxes,
            "gt_max_overlaps": self._highest(priors, ground_truth, taking_part),
        }
        return BatchAssignResult(gt_inds, None, ground_truth.labels_at(gt_inds), extra=extra)

    def _overlapping(self, predicted: Tensor, ground_truth: GroundTruth) -> Tensor:
        """Which predicted boxes (N, A) overlap an object too much to be background."""
        highest = torch.empty_like(predicted[..., 0])
        for piece, overlaps in self._chunks(predicted, ground_truth):
            highest[:, piece] = overlaps.amax(dim=1)
        return highest > self.neg_ignore_thr

    def _highest(self, priors: Tensor, ground_truth: GroundTruth, taking_part: Tensor) -> Tensor:
        """Highest overlap of each object with a prior, (N, G)."""
        highest = torch.zeros_like(ground_truth.boxes[..., 0])
        for piece, overlaps in self._chunks(priors, ground_truth):
            overlaps = overlaps.masked_fill(~taking_part[:, piece].unsqueeze(1), EXCLUDED)
            highest = torch.maximum(highest, overlaps.amax(dim=2))
        return highest

    def _chunks(self, boxes: Tensor, ground_truth: GroundTruth) -> Iterator[tuple[slice, Tensor]]:
        """Some boxes at a time, of (N, A, 4): which, and the overlaps (N, G, a) of the objects with them."""
        by_coordinate, padded = boxes.transpose(1, 2).contiguous(), ~ground_truth.valid.unsqueeze(2)
        for piece in chunk_slices(boxes.shape[1], ground_truth.valid.numel(), boxes.device):
            overlaps = self.iou_calculator(ground_truth.boxes, by_coordinate[..., piece].transpose(1, 2))
            yield piece, overlaps.masked_fill_(padded, EXCLUDED)


def _nearest(boxes: Tensor, ground_truth: GroundTruth, taking_part: Tensor, times: int) -> Tensor:
    """Indices (N, times, G) of the boxes nearest to each object, nearest first."""
    by_centre, gt_by_centre = bbox_xyxy_to_cxcywh(boxes), bbox_xyxy_to_cxcywh(ground_truth.boxes.to(boxes.dtype))
    absent = ~taking_part.unsqueeze(1)
    index = torch.zeros(*ground_truth.valid.shape, times, dtype=torch.int64, device=boxes.device)
    for piece in chunk_slices(gt_by_centre.shape[1], taking_part.numel(), boxes.device, least=1):
        distance = torch.cdist(gt_by_centre[:, piece], by_centre, p=1).masked_fill_(absent, torch.inf)
        index[:, piece] = distance.topk(times, dim=2, largest=False).indices
    return index.transpose(1, 2)


def _last_claim(gt_inds: Tensor, candidates: Tensor, claims: Tensor, counts: Tensor) -> Tensor:
    """The assignment (N, A) with the last claim (N, C) on each prior that counts, by the candidates' indices (N, C)."""
    if candidates.shape[1] == 0 or gt_inds.shape[1] == 0:
        return gt_inds
    order = torch.where(counts, torch.arange(candidates.shape[1], device=candidates.device), -1)
    last = torch.full_like(gt_inds, -1).scatter_reduce(1, candidates, order, "amax")
    return torch.where(last >= 0, claims.gather(1, last.clamp(min=0)), gt_inds)


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """Boxes (N, C, 4) at ``index`` (N, C) of boxes (N, A, 4)."""
    return boxes.gather(1, index.unsqueeze(2).expand(*index.shape, 4))
