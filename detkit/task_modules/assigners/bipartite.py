"""The assignment problem of a batch, solved on the host (Hungarian method, scipy's linear_sum_assignment)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detkit.structures.precision import full_precision
from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED

__all__ = ["NoMatchingError", "match"]


class NoMatchingError(Exception):
    """An image whose costs allow no assignment.

    Attributes:
        image: Its index in the batch.
        pair: Prediction and object whose cost is no number, or None where too many pairs are forbidden.
    """

    def __init__(self, image: int, pair: tuple[int, int] | None) -> None:
        super().__init__(f"no assignment in image {image}")
        self.image = image
        self.pair = pair


def match(costs: Tensor, valid: Tensor, taking_part: Tensor, most_per_object: int = 1) -> Tensor:
    """Give objects predictions of their own so that the sum of costs is least.

    Each object gets ``most_per_object`` predictions, or fewer where the predictions do not suffice for all,
    but one at least if there are as many predictions as objects.

    Args:
        costs: (N, A, G); infinite for a pair that must not match.
        valid: (N, G) bool, which objects there are.
        taking_part: (N, A) bool, which predictions may be given; the others are ignored.
        most_per_object: Most predictions of an object, at least 1.

    Returns:
        (N, A) int64, ``i + 1`` for the i-th object, 0 background, -1 ignored; on the device of the costs.

    Raises:
        NoMatchingError: A cost is NaN or minus infinity, or infinite costs leave no assignment.
    """
    # Both masks travel as one more row and column of the costs, in the one transfer.
    packed = F.pad(full_precision(costs)[0], (0, 1, 0, 1))
    packed[:, :-1, -1] = taking_part.to(packed.dtype)
    packed[:, -1, :-1] = valid.to(packed.dtype)
    # The only place where the host waits for the device: the method runs on the host.
    host = packed.cpu().numpy()
    gt_inds = np.full((*host.shape[:1], host.shape[1] - 1), IGNORED, dtype=np.int64)
    for image, table in enumerate(host):
        rows, columns = np.flatnonzero(table[:-1, -1]), np.flatnonzero(table[-1, :-1])
        gt_inds[image, rows] = BACKGROUND
        repeats = max(1, min(most_per_object, len(rows) // max(1, len(columns))))
        given, taken = _least_cost(image, table, rows, columns, repeats)
        gt_inds[image, given] = taken + 1
    return torch.from_numpy(gt_inds).to(costs.device, non_blocking=True)


def _least_cost(
    image: int, table: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], repeats: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and columns of the table that belong together."""
    own = table[np.ix_(rows, columns)]
    wrong = np.isnan(own) | np.isneginf(own)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise NoMatchingError(image, (int(rows[row]), int(columns[column])))
    try:
        given, taken = linear_sum_assignment(np.repeat(own, repeats, axis=1) if repeats > 1 else own)
    except ValueError:
        raise NoMatchingError(image, None) from None
    return rows[given], columns[taken // repeats]
