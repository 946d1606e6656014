"""Boxes whose sides are each found in a bucket, then moved (SABL, https://arxiv.org/abs/1912.04260, section 3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, bbox_rescale, stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode, boxes_to_encode

__all__ = ["BucketTargets", "BucketingBBoxCoder", "bbox2bucket", "bucket2bbox"]


class BucketTargets(NamedTuple):
    """What S buckets on each of four sides (left, right, top, bottom) learn; all (..., 4 * S).

    Attributes:
        offsets: From the side of the box to the centres of the buckets, in bucket widths.
        offset_weights: 1 where the offset is learnt: at the nearest buckets.
        labels: 1 at the bucket nearest to the side, else 0.
        label_weights: 0 where a bucket near the side is neither right nor wrong.
    """

    offsets: Tensor
    offset_weights: Tensor
    labels: Tensor
    label_weights: Tensor


def _buckets(priors: Tensor, num_buckets: int, scale_factor: float) -> tuple[Tensor, Tensor]:
    """Centres (..., 4, S) of the buckets of each side, outermost first, and their width (..., 4, 1)."""
    x1, y1, x2, y2 = bbox_rescale(priors, scale_factor).unbind(-1)
    width, height = (x2 - x1) / num_buckets, (y2 - y1) / num_buckets
    position = 0.5 + torch.arange(_per_side(num_buckets), dtype=priors.dtype, device=priors.device)
    inward_x, inward_y = position * width.unsqueeze(-1), position * height.unsqueeze(-1)  # (..., S)
    x1, y1, x2, y2 = (side.unsqueeze(-1) for side in (x1, y1, x2, y2))
    centers = torch.stack([x1 + inward_x, x2 - inward_x, y1 + inward_y, y2 - inward_y], dim=-2)
    return centers, torch.stack([width, width, height, height], dim=-1).unsqueeze(-1)


def _per_side(num_buckets: int) -> int:
    return (num_buckets + 1) // 2


def bbox2bucket(
    proposals: Tensor,
    gt: Tensor,
    num_buckets: int,
    scale_factor: float,
    offset_topk: int = 2,
    offset_upperbound: float = 1.0,
    cls_ignore_neighbor: bool = True,
) -> BucketTargets:
    """Buckets of the sides of boxes; each side's S buckets cover half of the enlarged proposal.

    Args:
        proposals: (..., 4).
        gt: (..., 4).
        num_buckets: Buckets along the enlarged proposal, 2 S or 2 S - 1.
        scale_factor: The proposal is enlarged by it around its centre first.
        offset_topk: Buckets per side, nearest first, that may learn an offset.
        offset_upperbound: The second and later of them must be nearer than this, in bucket widths.
        cls_ignore_neighbor: Give buckets nearer than their width, except the nearest, no label weight.

    Returns:
        Targets, float32 at least.
    """
    proposals, gt = full_precision(proposals, gt)
    centers, width = _buckets(proposals, num_buckets, scale_factor)
    x1, y1, x2, y2 = gt.unbind(-1)
    offsets = (centers - torch.stack([x1, x2, y1, y2], dim=-1).unsqueeze(-1)) / width  # (..., 4, S)
    # Stable, so that of two buckets at the same distance the outer one is the nearest on every device.
    distance, order = offsets.detach().abs().sort(dim=-1, stable=True)
    learnt = distance[..., :offset_topk] < offset_upperbound
    learnt[..., 0] = True
    offset_weights = torch.zeros_like(distance).scatter(-1, order[..., :offset_topk], learnt.to(distance.dtype))
    labels = torch.zeros_like(distance).scatter(-1, order[..., :1], 1.0)
    label_weights = torch.ones_like(distance)
    if cls_ignore_neighbor:
        label_weights = 1 - ((offsets.detach().abs() < 1) & (labels == 0)).to(distance.dtype)
    return BucketTargets(*(part.flatten(-2) for part in (offsets, offset_weights, labels, label_weights)))


def bucket2bbox(
    proposals: Tensor,
    cls_preds: Tensor,
    offset_preds: Tensor,
    num_buckets: int,
    scale_factor: float = 1.0,
    max_shape: MaxShape | None = None,
    clip_border: bool = True,
) -> tuple[Tensor, Tensor]:
    """Boxes of the best bucket of each side, and how sure the buckets are (section 3.3).

    Args:
        proposals: (..., 4).
        cls_preds: Logits (..., 4 * S) of the buckets.
        offset_preds: (..., 4 * S).
        num_buckets: As encoded.
        scale_factor: As encoded.
        max_shape: Image height and width, of all or (with leading dimension N) of each image; boxes are
            clipped to the last pixel.
        clip_border: Clip to ``max_shape``.

    Returns:
        Boxes (..., 4), and confidences (...) in [0, 1]: the probability of the best bucket, plus that of the
        second best where it is next to it, averaged over the sides. Float32 at least.
    """
    proposals, cls_preds, offset_preds = full_precision(proposals, cls_preds, offset_preds)
    cls_preds, offset_preds = (part.unflatten(-1, (4, -1)) for part in (cls_preds, offset_preds))  # (..., 4, S)
    centers, width = _buckets(proposals, num_buckets, scale_factor)
    scores, order = cls_preds.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    best = order[..., :1]
    offset = offset_preds.gather(-1, best) * width
    sides = (centers.expand_as(cls_preds).gather(-1, best) - offset).squeeze(-1)
    x1, x2, y1, y2 = sides.unbind(-1)
    boxes = stack_corners(x1, y1, x2, y2, max_shape if clip_border else None, margin=1)
    neighbor = (order[..., 1:2] - best).abs() == 1
    confidence = scores[..., :1] + scores[..., 1:2] * neighbor
    return boxes, confidence.squeeze(-1).mean(dim=-1)


@TASK_UTILS.register_module()
class BucketingBBoxCoder:
    """The sides of boxes as buckets and offsets from them.

    Args:
        num_buckets: Buckets along the enlarged prior, at least 3; each side has half of them, rounded up.
        scale_factor: The prior is enlarged by it first.
        offset_topk: Buckets per side that may learn an offset.
        offset_upperbound: The second and later of them must be nearer than this, in bucket widths.
        cls_ignore_neighbor: Give buckets nearer than their width, except the nearest, no label weight.
        clip_border: Clip decoded boxes to the image.
        use_box_type: Accepted for MMDetection's configs; boxes are plain tensors either way.
    """

    prior_kind = "boxes, as buckets and offsets"

    encode_size = 4

    def __init__(
        self,
        num_buckets: int,
        scale_factor: float,
        offset_topk: int = 2,
        offset_upperbound: float = 1.0,
        cls_ignore_neighbor: bool = True,
        clip_border: bool = True,
        use_box_type: bool = False,
    ) -> None:
        if num_buckets < 3:
            raise ValueError(f"BucketingBBoxCoder: num_buckets must be at least 3, got {num_buckets}")
        if not 1 <= offset_topk <= _per_side(num_buckets):
            raise ValueError(
                f"BucketingBBoxCoder: offset_topk must be in 1 … {_per_side(num_buckets)}, half of num_buckets "
                f"{num_buckets}, got {offset_topk}"
            )
        self.num_buckets = num_buckets
        self.scale_factor = scale_factor
        self.offset_topk = offset_topk
        self.offset_upperbound = offset_upperbound
        self.cls_ignore_neighbor = cls_ignore_neighbor
        self.clip_border = clip_border
        self.use_box_type = use_box_type

    def encode(self, bboxes: Tensor | Any, gt_bboxes: Tensor | Any) -> BucketTargets:
        """Targets of priors ``bboxes`` (..., 4) for ``gt_bboxes`` (..., 4)."""
        bboxes, gt_bboxes = boxes_to_encode("BucketingBBoxCoder", bboxes, gt_bboxes)
        return bbox2bucket(
            bboxes,
            gt_bboxes,
            self.num_buckets,
            self.scale_factor,
            self.offset_topk,
            self.offset_upperbound,
            self.cls_ignore_neighbor,
        )

    def decode(
        self, bboxes: Tensor | Any, pred_bboxes: tuple[Tensor, Tensor], max_shape: MaxShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Boxes (..., 4) and confidences (...) of bucket logits and offsets, each (..., 4 * S).

        Args:
            bboxes: Priors (..., 4); leading dimensions broadcast to those of the predictions.
            pred_bboxes: Logits and offsets.
            max_shape: See :func:`bucket2bbox`.
        """
        if len(pred_bboxes) != 2:
            raise ValueError(
                f"BucketingBBoxCoder.decode: (logits, offsets) were expected, got {len(pred_bboxes)} parts"
            )
        size = 4 * _per_side(self.num_buckets)
        bboxes, logits = boxes_to_decode("BucketingBBoxCoder", bboxes, pred_bboxes[0], encode_size=size)
        bboxes, offsets = boxes_to_decode("BucketingBBoxCoder", bboxes, pred_bboxes[1], encode_size=size)
        return bucket2bbox(bboxes, logits, offsets, self.num_buckets, self.scale_factor, max_shape, self.clip_border)
