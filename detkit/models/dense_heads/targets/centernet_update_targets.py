"""Targets of CenterNet2's first stage, Zhou et al., https://arxiv.org/abs/2103.07461, over the levels of a pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.structures.boxes import bbox2distance
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["CenterHeatTargets", "NearPoints", "center_heat_targets", "near_points", "well_predicted"]

# Below this, a heatmap is 0.
LEAST_HEAT = 1e-4
# The 3 x 3 cells around a centre come row by row; the fifth is the centre's own.
SIDE = 3
OWN_CELL = 4


class CenterHeatTargets(NamedTuple):
    """Targets of A points in N images.

    Attributes:
        heat: (N, A, C) in [0, 1], how near a point is to the centre of an object of the class.
        distances: (N, A, 4) to the sides of the object whose box the point learns, in strides; 1 where there is none.
        positive: (N, A) bool, which points learn a box.
    """

    heat: Tensor
    distances: Tensor
    positive: Tensor


def center_heat_targets(
    points: Tensor,
    regress_ranges: Tensor,
    truth: GroundTruth,
    num_classes: int,
    delta: float,
    min_radius: float,
) -> CenterHeatTargets:
    """Heat of all points, and the box that those around the centre of an object of their level's size learn.

    Args:
        points: (A, 4) x, y and the strides of both.
        regress_ranges: (A, 2), least and greatest half diagonal of a point's objects in pixels.
        truth: Objects of the N images.
        num_classes: C.
        delta: How fast heat falls with distance: the squared radius of an object is ``2 delta^2`` times its area.
        min_radius: Least radius in pixels.
    """
    batch_size, num_gts = truth.valid.shape
    num_points = len(points)
    xy, stride = points[:, :2], points[:, 2:]
    heat = points.new_zeros(batch_size, num_classes, num_points)
    nearest = points.new_full((batch_size, num_points), torch.inf)
    gt_inds = torch.zeros_like(nearest, dtype=torch.int64)
    for some in chunk_slices(num_gts, batch_size * num_points, points.device, least=1):
        boxes, valid = truth.boxes[:, some].unsqueeze(2), truth.valid[:, some].unsqueeze(2)  # (N, g, 1, ...)
        size = boxes[..., 2:] - boxes[..., :2]
        center = (boxes[..., :2] + boxes[..., 2:]) / 2
        of_cell = (center / stride).trunc() * stride + stride / 2  # (N, g, A, 2)
        off = xy - of_cell
        squared = torch.where((off == 0).all(dim=-1), 0.0, (xy - center).square().sum(dim=-1))
        radius = (2 * delta**2 * size.prod(dim=-1)).clamp(min=min_radius**2)
        distance = squared / radius
        value = torch.where(valid, (-distance).exp(), 0.0)
        labels = truth.labels[:, some].clamp(0, num_classes - 1).unsqueeze(2).expand_as(value)
        heat.scatter_reduce_(1, labels, torch.where(value < LEAST_HEAT, 0.0, value), "amax")

        sides = torch.cat([xy - boxes[..., :2], boxes[..., 2:] - xy], dim=-1).amin(dim=-1)
        half_diagonal = size.square().sum(dim=-1).sqrt() / 2
        here = (half_diagonal >= regress_ranges[:, 0]) & (half_diagonal <= regress_ranges[:, 1])
        eligible = valid & (sides > 0) & (off.abs() <= stride[:, :1]).all(dim=-1) & here
        least, row = torch.where(eligible, distance, torch.inf).min(dim=1)
        gt_inds = torch.where(least < nearest, row + some.start + 1, gt_inds)
        nearest = torch.minimum(nearest, least)
    around = torch.cat([xy - stride, xy + stride], dim=1)
    own, _ = truth.matched(gt_inds, around)
    distances = bbox2distance(xy.expand(batch_size, -1, 2), own) / stride.repeat(1, 2)
    return CenterHeatTargets(heat.transpose(1, 2), distances, gt_inds > 0)


class NearPoints(NamedTuple):
    """The 3 x 3 cells around the centre of each object, on each of the L levels.

    Attributes:
        point: (N, G, L * 9) number of the point in its image, in [0, A); meaningless where not inside.
        distances: (N, G, L * 9, 4) from it to the sides of the object, in strides.
        inside: (N, G, L * 9) bool, within the map and the object.
        center: (N, G, L * 9) bool, the centre's own cell, on a level that the object's size falls to.
    """

    point: Tensor
    distances: Tensor
    inside: Tensor
    center: Tensor


def near_points(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[tuple[float, float]],
    regress_ranges: Sequence[Sequence[float]],
    truth: GroundTruth,
) -> NearPoints:
    """Where the centres of the objects lie.

    Args:
        sizes: Height and width of each level.
        strides: Pixels per cell of each level, across and down.
        regress_ranges: Of each level, least and greatest half diagonal of its objects in pixels.
        truth: Objects of the N images.
    """
    boxes = truth.boxes
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    half_diagonal = (boxes[..., 2:] - boxes[..., :2]).square().sum(dim=-1).sqrt() / 2
    around = torch.arange(SIDE**2, device=boxes.device)
    steps = torch.stack([around % SIDE, around.div(SIDE, rounding_mode="floor")], dim=1) - SIDE // 2  # (9, 2)
    parts, start = [], 0
    for (height, width), stride, (least, most) in zip(sizes, strides, regress_ranges, strict=True):
        unit = torch.stack([boxes.new_full((), pixels) for pixels in stride])
        cell = (center / unit).long()  # (N, G, 2)
        column, row = (cell.unsqueeze(2) + steps).unbind(-1)  # (N, G, 9)
        sides = bbox2distance((cell + 0.5) * unit, boxes) / unit.repeat(2)  # (N, G, 4)
        distances = sides.unsqueeze(2) + torch.cat([steps, -steps], dim=1)  # (N, G, 9, 4)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (distances.amin(dim=-1) >= 0)
        here = (half_diagonal >= least) & (half_diagonal <= most) & (sides.amin(dim=-1) >= 0)
        parts.append((start + row * width + column, distances, inside, here.unsqueeze(2) & (around == OWN_CELL)))
        start += height * width
    point, distances, inside, own = (torch.cat(column, dim=2) for column in zip(*parts, strict=True))
    exists = truth.valid.unsqueeze(2)
    return NearPoints(point, distances, inside & exists, own & exists)


def well_predicted(
    near: NearPoints,
    predicted: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    topk: int,
    threshold: float,
) -> Tensor:
    """Which of the cells around each centre are positive: the centre's own, and those that predict the box well.

    Args:
        near: The cells.
        predicted: (N, A, 4) distances in strides.
        loss_of: Box loss of distances (P, 4) to distances (P, 4), one value per box.
        topk: Of the cells of an object less than this many.
        threshold: With a loss below this.

    Returns:
        (N, G, L * 9) bool.
    """
    num_images, num_gts, num_near = near.point.shape
    index = torch.where(near.inside, near.point, 0).flatten(1)
    own = predicted.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)).flatten(0, 1)
    loss = loss_of(own, near.distances.clamp(min=0).reshape(-1, 4)).view(num_images, num_gts, num_near)
    loss = torch.where(near.inside, loss, torch.inf)
    loss = torch.where(near.center, 0.0, loss)
    if num_gts == 0:
        return near.inside
    # Not kthvalue, which has no deterministic form on a GPU.
    least = loss.topk(min(topk, num_near), dim=2, largest=False).values
    limit = least[..., -1:].clamp(max=threshold)
    return loss < limit
