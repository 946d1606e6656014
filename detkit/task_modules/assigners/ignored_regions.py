"""Priors in regions in which nothing is counted (COCO's crowds)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules.assigners.chunks import chunk_slices

__all__ = ["in_ignored_region"]


def in_ignored_region(
    priors: Tensor, ground_truth: GroundTruth, iof_thr: float, iou_calculator: Any, wrt_candidates: bool = True
) -> Tensor | None:
    """Which priors overlap an ignored region by more than ``iof_thr``, (N, A) bool; None where none can.

    Args:
        priors: (A, 4) or (N, A, 4).
        ground_truth: With the ignored regions of N images.
        iof_thr: Least overlap; off where <= 0.
        iou_calculator: Registered IoU calculator.
        wrt_candidates: Whether the overlap is over the prior's area or the region's.
    """
    regions = ground_truth.ignored_boxes
    if iof_thr <= 0 or regions.shape[1] == 0:
        return None
    priors = priors if priors.dim() == 3 else priors.unsqueeze(0)
    inside = torch.empty(len(regions), priors.shape[1], dtype=torch.bool, device=priors.device)
    for piece in chunk_slices(priors.shape[1], regions.shape[0] * regions.shape[1], priors.device):
        if wrt_candidates:
            overlaps = iou_calculator(priors[:, piece], regions, mode="iof").transpose(1, 2)
        else:
            overlaps = iou_calculator(regions, priors[:, piece], mode="iof")
        inside[:, piece] = (ground_truth.ignored_valid.unsqueeze(-1) & (overlaps > iof_thr)).any(dim=1)
    return inside
