"""Soft-NMS, Bodla et al., https://arxiv.org/abs/1704.04503: overlapped boxes lose score instead of being dropped.

Scores of one group depend on its boxes only, so all groups (of all images) go through the steps together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.values import check_range
from detkit.signature import nearest

__all__ = ["SoftNMS", "overlaps", "soft_nms"]

# A table of all weights is made up to this size if most are used; else the weights of a step are computed in it.
TABLE_ELEMENTS = 1 << 22
METHODS = ("naive", "linear", "gaussian")


@dataclass(frozen=True)
class SoftNMS:
    """Take the best box of each group, lower the scores of those it overlaps, and again.

    Attributes:
        iou_threshold: ``linear`` and ``naive`` lower scores from this IoU on, in [0, 1].
        sigma: Width of ``gaussian``, above 0.
        min_score: Boxes must keep at least this score.
        method: What a score is multiplied by: ``linear``, 1 - IoU; ``gaussian``, exp(-IoU^2 / sigma), at every
            IoU; ``naive``, 0.
        offset: 0, or 1 where x2 and y2 are the last pixel of a box.
    """

    iou_threshold: float = 0.3
    sigma: float = 0.5
    min_score: float = 1e-3
    method: str = "linear"
    offset: int = 0

    def __post_init__(self) -> None:
        check_range("iou_threshold", self.iou_threshold, 0, 1)
        check_range("sigma", self.sigma, 0, above=True)
        check_range("min_score", self.min_score, 0)
        check_range("offset", self.offset, 0, 1)
        if self.method not in METHODS:
            close = nearest(str(self.method), METHODS)[0]
            raise ValueError(f"method: unknown method {self.method!r}; did you mean {close!r}?")

    def __call__(
        self, boxes: Tensor, scores: Tensor, groups: Tensor | None, limit: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """New scores (K,) and indices (K,) of what stays, best first.

        Waits for the device twice: for the size of the largest group, and for the number of boxes that stay.

        Args:
            boxes: (D, 4).
            scores: (D,).
            groups: (D,); boxes of different groups do not meet. None is one group.
            limit: Only the best so many of each group are asked for; None asks for all.
        """
        count = len(scores)
        if count == 0:
            return scores, torch.zeros_like(scores, dtype=torch.int64)
        groups = torch.zeros_like(scores, dtype=torch.int64) if groups is None else groups
        order = groups.argsort(stable=True)
        row, column, rows, columns = _places(groups[order])
        exact = scores.dtype if scores.dtype == torch.float64 else torch.float32
        padded_boxes = boxes.new_zeros((rows, columns, 4), dtype=exact)
        padded_scores = scores.new_full((rows, columns), -1, dtype=exact)
        index = order.new_zeros((rows, columns))
        padded_boxes[row, column] = boxes[order].to(exact)
        padded_scores[row, column] = scores[order].to(exact)
        index[row, column] = order
        steps = columns if limit is None else min(limit, columns)
        found, picked = self._decay(padded_boxes, padded_scores, steps)
        # Back in the order of the input, so that of equal scores the first comes first.
        final = scores.new_full((count,), -1, dtype=exact)
        taken = found >= self.min_score
        final[index.gather(1, picked)[taken]] = found[taken]
        values, best = final.sort(descending=True, stable=True)
        kept = int(taken.sum())
        return values[:kept].to(scores.dtype), best[:kept]

    def _decay(self, boxes: Tensor, scores: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Scores (G, steps) as the boxes (G, M, 4) are taken, -1 where none is left, and their columns (G, steps)."""
        gone = scores < 0
        rows, columns = scores.shape
        table = None
        if rows * columns**2 <= TABLE_ELEMENTS and columns <= 4 * steps:
            table = self._weight(overlaps(boxes, boxes, self.offset)).flatten(0, 1)
            first = torch.arange(rows, device=boxes.device)[:, None] * columns
        found, picked = [], []
        for _ in range(steps):
            best, place = scores.masked_fill(gone, -1).max(dim=1, keepdim=True)
            found.append(best)
            picked.append(place)
            gone.scatter_(1, place, True)
            if table is None:
                chosen = boxes.gather(1, place.unsqueeze(-1).expand(-1, -1, 4))
                weight = self._weight(overlaps(chosen, boxes, self.offset).squeeze(1))
            else:
                weight = table.index_select(0, (first + place).squeeze(1))
            scores = scores * weight
        return torch.cat(found, dim=1), torch.cat(picked, dim=1)

    def _weight(self, iou: Tensor) -> Tensor:
        if self.method == "gaussian":
            return torch.exp(-(iou**2) / self.sigma)
        return torch.where(iou >= self.iou_threshold, 1 - iou if self.method == "linear" else 0.0, 1.0)


def _places(groups: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Row and column (D,) of each box in a table with a row per group, and its size; ``groups`` are sorted."""
    starts = torch.ones_like(groups, dtype=torch.bool)
    starts[1:] = groups[1:] != groups[:-1]
    row = starts.cumsum(0) - 1
    position = torch.arange(len(groups), device=groups.device)
    column = position - torch.where(starts, position, 0).cummax(0).values
    rows, columns = (torch.stack([row[-1], column.max()]) + 1).tolist()
    return row, column, rows, columns


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS of one group of boxes.

    Args:
        boxes: (D, 4).
        scores: (D,).
        iou_threshold: See :class:`SoftNMS`, as the rest.
        sigma: Width of ``gaussian``.
        min_score: Boxes must keep at least this score.
        method: ``linear``, ``gaussian`` or ``naive``.
        offset: 0 or 1.

    Returns:
        Boxes with their new scores (K, 5), best first, and their indices (K,) in ``boxes``.
    """
    kept_scores, keep = SoftNMS(iou_threshold, sigma, min_score, method, offset)(boxes, scores, None)
    return torch.cat([boxes[keep], kept_scores[:, None]], dim=1), keep


def overlaps(boxes: Tensor, others: Tensor, offset: int = 0, eps: float = 1e-6) -> Tensor:
    """IoU (..., M, D) of boxes (..., M, 4) with others (..., D, 4).

    Args:
        boxes: (..., M, 4).
        others: (..., D, 4).
        offset: What a box reaches beyond x2 and y2.
        eps: Least union.
    """
    x1, y1, x2, y2 = boxes.unsqueeze(-2).unbind(dim=-1)
    left, top, right, bottom = others.unsqueeze(-3).unbind(dim=-1)
    width = (torch.minimum(x2, right) - torch.maximum(x1, left)).add_(offset).clamp_(min=0)
    height = (torch.minimum(y2, bottom) - torch.maximum(y1, top)).add_(offset).clamp_(min=0)
    inter = width.mul_(height)
    area, other_area = (x2 - x1 + offset) * (y2 - y1 + offset), (right - left + offset) * (bottom - top + offset)
    return inter / (area + other_area - inter).clamp_(min=eps)
