"""Recall of region proposals, whatever their class and the size of the objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["proposal_recall"]

Array = NDArray[np.float64]


def proposal_recall(ious: Sequence[Array], limits: Sequence[int], iou_thrs: Sequence[float]) -> Array:
    """Share of the objects that the best proposals of each image find.

    Objects and proposals are paired one to one, the pair of highest IoU first.

    Args:
        ious: Per image, the IoU of each of G objects with each of P proposals, best score first, (G, P).
        limits: How many proposals per image are looked at.
        iou_thrs: IoU from which an object is found.

    Returns:
        (limits, thresholds) shares in [0, 1]; not a number where there is no object at all.
    """
    best = np.array([np.concatenate([_pair(iou[:, :limit]) for iou in ious]) for limit in limits])
    if not best.shape[1]:
        return np.full((len(limits), len(iou_thrs)), np.nan)
    return np.stack([(best >= threshold).mean(axis=1) for threshold in iou_thrs], axis=1)


def _pair(iou: Array) -> Array:
    """IoU of each object with its proposal, 0 where none is left for it, (G,)."""
    remaining = iou.copy()
    paired = np.zeros(len(iou))
    for _ in range(min(iou.shape)):
        row, column = np.unravel_index(remaining.argmax(), remaining.shape)
        paired[row] = remaining[row, column]
        remaining[row, :] = remaining[:, column] = -1
    return paired
