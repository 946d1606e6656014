"""Assignment of anchors by the region of an object that their centre lies in.

Guided Anchoring (https://arxiv.org/abs/1901.03278, section 3.3), as Cascade RPN (https://arxiv.org/abs/1909.06720,
section 3.3) uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.assign_result import IGNORED, AssignResult, BatchAssignResult
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.prior_generators.regions import anchor_inside_flags, calc_region

__all__ = ["RegionAssigner"]


@TASK_UTILS.register_module()
class RegionAssigner:
    """An anchor whose centre lies in the centre region of an object learns it.

    1. The level of an object is the one whose anchors have its size, rounded; regions are rounded to cells.
    2. At its level, an anchor in an object's centre region (``center_ratio`` of its width and height) learns it,
       one in the rest of its ignore region (``ignore_ratio``) is ignored. Of several objects the last counts.
    3. At the levels next to it, an anchor in an object's ignore region is ignored, whatever rule 2 says.
    4. An anchor outside of the image is ignored. All others are background.

    In an image without objects every anchor is background, also one outside.

    Args:
        center_ratio: Size of the centre region, in (0, 1].
        ignore_ratio: Size of the ignore region, in [center_ratio, 1].

    Raises:
        ValueError: A ratio is outside of its range.
    """

    def __init__(self, center_ratio: float = 0.2, ignore_ratio: float = 0.5) -> None:
        if not 0 < center_ratio <= ignore_ratio <= 1:
            raise ValueError(
                "RegionAssigner: expected 0 < center_ratio <= ignore_ratio <= 1, "
                f"got center_ratio={center_ratio!r} and ignore_ratio={ignore_ratio!r}"
            )
        self.center_ratio = center_ratio
        self.ignore_ratio = ignore_ratio

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: Mapping[str, Any],
        featmap_sizes: Sequence[Sequence[int]],
        num_level_anchors: Sequence[int],
        anchor_scale: float,
        anchor_strides: Sequence[float],
        gt_instances_ignore: InstanceData | None = None,
        allowed_border: float = 0,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign the anchors of one image.

        Args:
            pred_instances: With ``priors`` (A, 4) and ``valid_flags`` (A,) bool, which count as inside.
            gt_instances: With ``bboxes`` (G, 4) and ``labels`` (G,).
            img_meta: With ``img_shape``: height, width.
            featmap_sizes: Height and width of each level.
            num_level_anchors: Anchors of each level.
            anchor_scale: Size of an anchor in strides.
            anchor_strides: Stride of each level.
            gt_instances_ignore: None; ignored regions have no meaning here.
            allowed_border: Pixels by which an anchor may leave the image; -1 for any number.
            kwargs: What other assigners use of an image; unused.

        Returns:
            The assignment; ``labels`` are 0 where there is no object but the image has some.

        Raises:
            NotImplementedError: Ignored regions are given.
        """
        if gt_instances_ignore is not None:
            raise NotImplementedError(
                f"RegionAssigner: ignored regions have no meaning here, got {len(gt_instances_ignore)}; expected None"
            )
        priors = get_box_tensor(pred_instances.priors)
        flags = pred_instances.valid_flags.unsqueeze(0) if len(gt_instances) > 0 else None
        batch = self.assign_batch(
            priors,
            GroundTruth.from_instances([gt_instances]),
            flags,
            img_metas=[img_meta],
            featmap_sizes=featmap_sizes,
            num_level_anchors=num_level_anchors,
            anchor_scale=anchor_scale,
            anchor_strides=anchor_strides,
            allowed_border=allowed_border,
        )
        result = batch.image(0, len(gt_instances))
        if result.num_gts == 0 or result.num_preds == 0:
            result.max_overlaps = priors.new_zeros(result.num_preds)
        return result

    def assign_batch(
        self,
        priors: Tensor,
        ground_truth: GroundTruth,
        prior_valid: Tensor | None = None,
        *,
        img_metas: Sequence[Mapping[str, Any]],
        featmap_sizes: Sequence[Sequence[int]],
        num_level_anchors: Sequence[int],
        anchor_scale: float,
        anchor_strides: Sequence[float],
        allowed_border: float = 0,
    ) -> BatchAssignResult:
        """Assign the anchors of N images; ignored regions do not count.

        Args:
            priors: (A, 4), shared by the images, or (N, A, 4).
            ground_truth: Objects of the N images.
            prior_valid: (N, A) bool, which anchors take part; None is all. The others are ignored.
            img_metas: Facts of the N images, with ``img_shape``: height, width.
            featmap_sizes: Height and width of each level.
            num_level_anchors: Anchors of each level.
            anchor_scale: Size of an anchor in strides.
            anchor_strides: Stride of each level.
            allowed_border: Pixels by which an anchor may leave the image; -1 for any number.

        Returns:
            The assignment; ``labels`` are 0 where there is no object but the image has some.
        """
        if sum(num_level_anchors) != priors.shape[-2]:
            raise ValueError(f"RegionAssigner: {priors.shape[-2]} anchors, but levels of {list(num_level_anchors)}")
        batch_size, num_gts = ground_truth.valid.shape
        anchors = priors.expand(batch_size, *priors.shape[-2:])
        has_objects = ground_truth.valid.any(dim=1, keepdim=True)
        gt_inds = torch.zeros(anchors.shape[:2], dtype=torch.int64, device=anchors.device)
        if num_gts > 0:
            levels = self._levels(ground_truth.boxes, anchor_scale * anchor_strides[0], len(num_level_anchors))
            found = [
                self._assign_level(level_anchors, ground_truth, levels - level, stride, size)
                for level, (level_anchors, stride, size) in enumerate(
                    zip(anchors.split(list(num_level_anchors), dim=1), anchor_strides, featmap_sizes, strict=True)
                )
            ]
            gt_inds = torch.cat(found, dim=1)
        taking_part = torch.ones_like(gt_inds, dtype=torch.bool) if prior_valid is None else prior_valid
        inside = torch.stack(
            [
                anchor_inside_flags(own, flags, meta["img_shape"], allowed_border)
                for own, flags, meta in zip(anchors, taking_part, img_metas, strict=True)
            ]
        )
        gt_inds = torch.where(torch.where(has_objects, inside, taking_part), gt_inds, IGNORED)
        labels = ground_truth.labels_at(gt_inds)
        return BatchAssignResult(gt_inds, None, torch.where(has_objects, labels.clamp(min=0), -1))

    def _levels(self, boxes: Tensor, first_size: float, num_levels: int) -> Tensor:
        """The level (N, G) whose anchors have the size of a box, those of the first being ``first_size``."""
        size = torch.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))
        level = torch.floor(torch.log2(size) - math.log2(first_size) + 0.5)
        return level.clamp(min=0, max=num_levels - 1).long()

    def _assign_level(
        self, anchors: Tensor, ground_truth: GroundTruth, above: Tensor, stride: float, size: Sequence[int]
    ) -> Tensor:
        """``gt_inds`` (N, a) of the anchors (N, a, 4) of a level, by how many levels above it objects are (N, G)."""
        own, adjacent = ((where & ground_truth.valid) for where in (above == 0, above.abs() == 1))
        boxes = ground_truth.boxes / stride
        centre = _only(own, calc_region(boxes, (1 - self.center_ratio) / 2, size))
        around = _only(own | adjacent, calc_region(boxes, (1 - self.ignore_ratio) / 2, size))
        # Even claims ignore the anchor, odd ones learn the object: the highest decides, and an adjacent level's first.
        number = torch.arange(1, above.shape[1] + 1, device=above.device, dtype=torch.int32)
        ignore = torch.where(adjacent, 2 * len(number) + 2, 2 * number).unsqueeze(2)
        learn = (2 * number + 1).view(1, -1, 1)
        gt_inds = above.new_zeros(anchors.shape[:2])
        for piece in chunk_slices(anchors.shape[1], above.numel(), anchors.device):
            points = anchors[:, piece] / stride
            points = (points[..., :2] + points[..., 2:]) * 0.5
            claim = torch.maximum(_contains(around, points) * ignore, _contains(centre, points) * learn).amax(dim=1)
            gt_inds[:, piece] = torch.where(claim % 2 == 1, claim // 2, torch.where(claim > 0, IGNORED, 0))
        return gt_inds


def _only(objects: Tensor, region: Sequence[Tensor]) -> list[Tensor]:
    """The four sides (N, G, 1) of regions, float; those of other ``objects`` (N, G) contain nothing."""
    x1, y1, x2, y2 = (side.float().unsqueeze(2) for side in region)
    return [torch.where(objects.unsqueeze(2), x1, torch.inf), y1, x2, y2]


def _contains(region: Sequence[Tensor], points: Tensor) -> Tensor:
    """Whether regions, of four (N, G, 1) sides, contain points (N, a, 2), borders included; (N, G, a)."""
    x1, y1, x2, y2 = region
    x, y = (points[..., axis].contiguous().unsqueeze(1) for axis in (0, 1))
    return (x >= x1).logical_and_(x <= x2).logical_and_(y >= y1).logical_and_(y <= y2)
