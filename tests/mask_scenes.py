"""Positive RoIs and masks for the tests of mask heads."""

from __future__ import annotations

import numpy as np
import torch

from detkit.models.roi_heads.sampling import PositiveRoIs
from detkit.structures.masks import BitmapMasks, PolygonMasks


def positives_of(boxes, gt_index, labels=None):
    """RoIs of several images: for each its boxes, and the object of each box."""
    counts = [len(of_image) for of_image in boxes]
    joined = torch.tensor([box for of_image in boxes for box in of_image], dtype=torch.float32).view(-1, 4)
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).float()
    index = torch.tensor([one for of_image in gt_index for one in of_image]).long()
    return PositiveRoIs(
        rois=torch.cat([image.unsqueeze(1), joined], dim=1),
        labels=torch.zeros(len(joined)).long() if labels is None else labels,
        gt_index=index,
        place=torch.arange(len(joined)),
        counts=counts,
        host_boxes=joined.numpy(),
        host_gt_index=index.numpy(),
    )


def star(rng, height, width, corners=9):
    """A polygon that does not cross itself, partly beyond the image."""
    angle = np.sort(rng.rand(corners)) * 2 * np.pi
    radius = rng.uniform(0.1, 0.5, (corners, 1)) * min(height, width)
    points = rng.rand(2) * [width, height] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points.clip(0, [width, height]).reshape(-1)


def scene(sizes, objects=4, rois=12, seed=0):
    """Positives, polygons and bitmaps of images of these sizes."""
    rng = np.random.RandomState(seed)
    polygons = [
        PolygonMasks([[star(rng, *size) for _ in range(rng.randint(1, 3))] for _ in range(objects)], *size)
        for size in sizes
    ]
    boxes, index = [], []
    for masks in polygons:
        of = rng.randint(0, objects, rois)
        around = masks.get_bboxes()[of]
        # Some hang over the image.
        boxes.append((around + rng.uniform(-6, 6, around.shape)).round(1).tolist())
        index.append(of.tolist())
    bitmaps = [BitmapMasks(masks.to_ndarray(), masks.height, masks.width) for masks in polygons]
    return positives_of(boxes, index), polygons, bitmaps
