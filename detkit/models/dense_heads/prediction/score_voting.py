"""Detections moved to the mean of what they suppressed (PAA, https://arxiv.org/abs/2007.08103, 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from detkit.structures.boxes import bbox_overlaps
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["vote_boxes"]

# A box votes for one that it overlaps by more than this, with the weight exp(-(1 - IoU)^2 / SIGMA) times its score.
LEAST_IOU = 0.01
SIGMA = 0.025


def vote_boxes(boxes: Tensor, labels: Tensor, voters: Tensor, voter_labels: Tensor, voter_scores: Tensor) -> Tensor:
    """Boxes (D, 4), each the weighted mean of the voters of its class around it; itself where it has none.

    Args:
        boxes: (D, 4).
        labels: (D,).
        voters: (P, 4).
        voter_labels: (P,).
        voter_scores: (P,).
    """
    voted = torch.empty_like(boxes)
    for some in chunk_slices(len(boxes), len(voters), boxes.device, least=1):
        iou = bbox_overlaps(boxes[some], voters)  # (d, P)
        near = (iou > LEAST_IOU) & (labels[some].unsqueeze(1) == voter_labels)
        weight = torch.exp(-(1 - iou).square() / SIGMA) * voter_scores * near
        total = weight.sum(dim=1, keepdim=True)
        mean = weight @ voters / total.clamp(min=torch.finfo(total.dtype).tiny)
        voted[some] = torch.where(total > 0, mean, boxes[some])
    return voted
