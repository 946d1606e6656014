"""Which proposals a RoI head learns from: a fixed number of each image, and of these the objects for masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.structures.proposals import Proposals, boxes_to_rois
from detkit.task_modules import assign_batch, sample_batch

__all__ = ["PositiveRoIs", "SampledRoIs", "positive_rois", "sample_rois"]


@dataclass(frozen=True)
class SampledRoIs:
    """R sampled RoIs of each of N images: positives, then negatives, then padding.

    R depends on settings and padded sizes alone, so that no shape follows from the data.

    Attributes:
        boxes: (N, R, 4); zeros in padding.
        labels: (N, R) int64, the number of classes for background and padding.
        gt_boxes: (N, R, 4) of the object; the RoI's own box where there is none.
        gt_index: (N, R) int64, which of the image's objects; 0 where there is none.
        positive: (N, R) bool.
        valid: (N, R) bool, False in padding.
        is_gt: (N, R) bool, which RoIs are objects that were added as proposals.
        label_weights: (N, R) that the sampler gives, such as ScoreHLRSampler's of negatives; None is 1 for all.
        proposal_ious: (N, A) highest IoU with an object of each proposal that was to be sampled, 1 of an object that
            was added as one, -inf in padding, in any order; None where the assigner has none.
    """

    boxes: Tensor
    labels: Tensor
    gt_boxes: Tensor
    gt_index: Tensor
    positive: Tensor
    valid: Tensor
    is_gt: Tensor
    label_weights: Tensor | None = None
    proposal_ious: Tensor | None = None

    @classmethod
    def without_objects(cls, proposals: Proposals, num_classes: int) -> SampledRoIs:
        """All proposals, as regions of which no object is known, as in prediction."""
        nothing = torch.zeros_like(proposals.valid)
        none = nothing.long()
        boxes = proposals.boxes
        return cls(boxes, none + num_classes, boxes, none, positive=nothing, valid=proposals.valid, is_gt=nothing)

    @property
    def rois(self) -> Tensor:
        """(N * R, 5), the index of the image before each box."""
        return boxes_to_rois(self.boxes)


@torch.no_grad()
def sample_rois(
    proposals: Proposals,
    ground_truth: GroundTruth,
    assigner: Any,
    sampler: Any,
    num_classes: int,
    feats: Sequence[Tensor] | None = None,
) -> SampledRoIs:
    """Assign the proposals of a batch to its objects, and sample.

    Args:
        proposals: Of N images.
        ground_truth: Their objects.
        assigner: Registered assigner, batched or per image.
        sampler: Registered sampler, batched or per image.
        num_classes: Label of the background.
        feats: Feature levels, for a sampler that runs the head.
    """
    assigned = assign_batch(assigner, proposals.boxes, ground_truth, proposals.valid)
    sampled = sample_batch(sampler, assigned, proposals.boxes, ground_truth, feats=feats)
    sampled, weights = sampled if isinstance(sampled[0], tuple) else (sampled, None)
    assert sampled.priors is not None
    assert sampled.gt_inds is not None
    available = sampled.positive.shape[1]
    rows = sampled.compact(min(getattr(sampler, "num", available), available))
    boxes = torch.where(rows.valid.unsqueeze(-1), rows.of(sampled.priors), 0.0)
    gt_inds = torch.where(rows.positive, rows.of(sampled.gt_inds), 0)
    gt_boxes, labels = ground_truth.matched(gt_inds, boxes)
    is_gt = torch.zeros_like(rows.valid) if sampled.is_gt is None else rows.of(sampled.is_gt) & rows.valid
    if weights is not None:
        weights = torch.where(rows.positive, 1.0, rows.of(weights))
    ious = None if assigned.max_overlaps is None else torch.where(proposals.valid, assigned.max_overlaps, -torch.inf)
    if ious is not None and sampled.is_gt is not None:
        ious = torch.cat([torch.where(sampled.is_gt, 1.0, -torch.inf), ious], dim=1)
    return SampledRoIs(
        boxes=boxes,
        labels=torch.where(rows.positive, labels, num_classes),
        gt_boxes=gt_boxes,
        gt_index=(gt_inds - 1).clamp(min=0),
        positive=rows.positive,
        valid=rows.valid,
        is_gt=is_gt,
        label_weights=weights,
        proposal_ious=ious,
    )


class PositiveRoIs(NamedTuple):
    """The K positive RoIs of a batch, image after image, without padding.

    Attributes:
        rois: (K, 5), the index of the image before each box.
        labels: (K,) int64.
        gt_index: (K,) int64, which of its image's objects.
        place: (K,) int64, which row of the N * R sampled RoIs.
        counts: How many there are of each image.
        host_boxes: (K, 4) the boxes again, on the host, where polygons are cut.
        host_gt_index: (K,) int64 ``gt_index`` again, on the host.
    """

    rois: Tensor
    labels: Tensor
    gt_index: Tensor
    place: Tensor
    counts: list[int]
    host_boxes: NDArray[np.float32]
    host_gt_index: NDArray[np.int64]


def positive_rois(stages: Sequence[SampledRoIs]) -> list[PositiveRoIs]:
    """The positive RoIs of one sample, or of each stage of a cascade.

    Masks are too dear to be computed of padding too. So the device is asked here, once for all stages of a step,
    which RoIs are positive, where they are and of which objects: the one place where a two-stage detector's training
    waits, suppression aside.
    """
    facts = [
        torch.cat([one.boxes.float(), torch.stack([one.gt_index, one.positive], dim=-1).float()], dim=-1)
        for one in stages
    ]
    read = torch.cat([one.flatten() for one in facts]).cpu().numpy()
    ends = np.cumsum([one.numel() for one in facts])[:-1]
    of_stages = (part.reshape(one.shape) for part, one in zip(np.split(read, ends), facts, strict=True))
    return [_compact(stage, on_host) for stage, on_host in zip(stages, of_stages, strict=True)]


def _compact(stage: SampledRoIs, on_host: NDArray[np.float32]) -> PositiveRoIs:
    """``on_host`` (N, R, 6): box, object, and whether positive."""
    positive = on_host[..., 5] > 0
    chosen = np.flatnonzero(positive)
    facts = on_host.reshape(-1, 6)[chosen]
    place = torch.from_numpy(chosen).to(stage.boxes.device, non_blocking=True)
    return PositiveRoIs(
        rois=stage.rois[place],
        labels=stage.labels.flatten()[place],
        gt_index=stage.gt_index.flatten()[place],
        place=place,
        counts=positive.sum(axis=1).tolist(),
        host_boxes=facts[:, :4],
        host_gt_index=facts[:, 4].astype(np.int64),
    )
