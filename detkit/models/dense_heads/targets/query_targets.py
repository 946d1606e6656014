"""What queries learn: DETR, https://arxiv.org/abs/2005.12872, and with denoising DINO, https://arxiv.org/abs/2203.03605.

Letters: L decoder layers, N images, Q queries of each, G objects of each (padded), C classes. Boxes of queries are
centre and size in shares of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.ops.image_sizes import image_sizes
from detkit.signature import takes_batches
from detkit.structures.boxes import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from detkit.structures.ground_truth import GroundTruth

__all__ = ["QueryTargets", "denoising_targets", "hungarian", "matched_targets"]


@dataclass(frozen=True)
class QueryTargets:
    """Of L layers.

    Attributes:
        labels: (L, N, Q), C where there is no object.
        boxes: (L, N, Q, 4), 0 where there is no object.
        positive: (L, N, Q) bool, which have an object.
        negative: (L, N, Q) bool, which count as background in what the losses are divided by.
    """

    labels: Tensor
    boxes: Tensor
    positive: Tensor
    negative: Tensor


def hungarian(cost_of_classes: str, weight: float) -> dict[str, Any]:
    """Config of the papers' assigner: costs of classes, of boxes and of their overlap."""
    costs = [
        {"type": cost_of_classes, "weight": weight},
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ]
    return {"type": "HungarianAssigner", "match_costs": costs}


def matched_targets(
    assigner: Any,
    truth: GroundTruth,
    metas: Sequence[Mapping[str, Any]],
    logits: Tensor,
    boxes: Tensor,
    num_classes: int,
) -> QueryTargets:
    """Match the queries of all layers and images in one call, so that the host waits once.

    Args:
        assigner: Of predictions.
        truth: Objects of the N images.
        metas: Image facts with ``img_shape``.
        logits: (L, N, Q, C), or one more channel for the background.
        boxes: (L, N, Q, 4) float32.
        num_classes: C.
    """
    num_layers = len(logits)
    sizes = image_sizes(metas, boxes[0], "data_samples")
    # Layers are so many images more.
    objects = GroundTruth(
        *(
            part.repeat(num_layers, *[1] * (part.dim() - 1))
            for part in (truth.boxes, truth.labels, truth.valid, truth.ignored_boxes, truth.ignored_valid)
        )
    )
    corners = (bbox_cxcywh_to_xyxy(boxes.detach()) * sizes).flatten(0, 1)
    gt_inds = _matched(assigner, objects, [*metas] * num_layers, logits.detach().flatten(0, 1), corners)
    wanted, labels = objects.matched(gt_inds, boxes.new_zeros(1, 4))
    positive = (gt_inds > 0).unflatten(0, logits.shape[:2])
    labels = labels.unflatten(0, logits.shape[:2])
    return QueryTargets(
        labels=torch.where(positive, labels, num_classes),
        boxes=bbox_xyxy_to_cxcywh(wanted.unflatten(0, logits.shape[:2]) / sizes),
        positive=positive,
        negative=(gt_inds == 0).unflatten(0, logits.shape[:2]),
    )


def _matched(
    assigner: Any, objects: GroundTruth, metas: Sequence[Mapping[str, Any]], scores: Tensor, corners: Tensor
) -> Tensor:
    """``gt_inds`` (M, Q) of M images, one by one where an assigner of one's own knows no batches."""
    if takes_batches(assigner, "assign", "assign_batch"):
        return assigner.assign_batch(None, objects, img_metas=metas, scores=scores, bboxes=corners).gt_inds
    rows = []
    for index, meta in enumerate(metas):
        valid = objects.valid[index]
        own = InstanceData(bboxes=objects.boxes[index][valid], labels=objects.labels[index][valid])
        predictions = InstanceData(scores=scores[index], bboxes=corners[index])
        rows.append(assigner.assign(pred_instances=predictions, gt_instances=own, img_meta=meta).gt_inds)
    return torch.stack(rows)


def denoising_targets(
    truth: GroundTruth,
    metas: Sequence[Mapping[str, Any]],
    num_layers: int,
    num_queries: int,
    num_groups: int,
    num_classes: int,
) -> QueryTargets:
    """Targets of queries that were made of the objects: each group holds all objects, then all once more as background.

    Args:
        truth: Objects of the N images.
        metas: Image facts with ``img_shape``.
        num_layers: L.
        num_queries: Q, of all groups.
        num_groups: Groups.
        num_classes: C.

    Raises:
        ValueError: The groups do not hold the objects twice.
    """
    num_objects = truth.valid.shape[1]
    if num_groups < 1 or num_queries % num_groups or num_queries // num_groups < 2 * num_objects:
        raise ValueError(
            f"dn_meta: {num_queries} queries in {num_groups} groups do not hold {num_objects} objects twice each"
        )
    size = num_queries // num_groups

    def placed(of_objects: Tensor, start: int) -> Tensor:
        """(N, G, ...) from the ``start``-th place of each group on, zeros elsewhere: (L, N, Q, ...)."""
        inner = [0, 0] * (of_objects.dim() - 2)
        group = F.pad(of_objects, (*inner, start, size - start - num_objects))
        groups = group.repeat(1, num_groups, *[1] * (of_objects.dim() - 2))
        return groups.expand(num_layers, *groups.shape)

    positive = placed(truth.valid, 0)
    boxes = bbox_xyxy_to_cxcywh(truth.boxes / image_sizes(metas, truth.boxes, "data_samples"))
    return QueryTargets(
        labels=torch.where(positive, placed(truth.labels, 0), num_classes),
        boxes=placed(boxes, 0),
        positive=positive,
        negative=placed(truth.valid, size // 2),
    )
