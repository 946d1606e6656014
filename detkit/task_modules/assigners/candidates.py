"""Objects that choose a few priors each, and priors chosen by several."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detkit.structures.ground_truth import GroundTruth

__all__ = [
    "CENTER_MARGIN",
    "NO_OVERLAP",
    "Chosen",
    "at_candidates",
    "check_classes",
    "chosen_by_best",
    "inside_boxes",
    "of_class",
    "present_only",
]


# Overlap that says that a prior is no object's; MMDetection's value.
NO_OVERLAP = -1e8
# A centre must lie inside its object by more than this many pixels (ATSS, TOOD).
CENTER_MARGIN = 0.01


class Chosen(NamedTuple):
    """What the A priors of N images learn.

    Attributes:
        gt_inds: (N, A) int64, ``i + 1`` for the i-th object, else 0.
        value: (N, A) by what the object was the best; -inf where there is none.
    """

    gt_inds: Tensor
    value: Tensor


def chosen_by_best(index: Tensor, chosen: Tensor, value: Tensor, num_priors: int) -> Chosen:
    """Give each prior to the object of the highest value among those that chose it; of equals, the first.

    Args:
        index: (N, G, K) priors that are candidates of each object.
        chosen: (N, G, K) bool, which of these the object takes.
        value: (N, G, K).
        num_priors: A.
    """
    batch_size, num_gts, _ = index.shape
    flat = index.flatten(1)
    offered = torch.where(chosen, value, -torch.inf).flatten(1)
    best = offered.new_full((batch_size, num_priors), -torch.inf).scatter_reduce(1, flat, offered, "amax")
    number = torch.arange(1, num_gts + 1, device=index.device).view(1, -1, 1).expand_as(index).flatten(1)
    wins = chosen.flatten(1) & (offered == best.gather(1, flat))
    first = torch.where(wins, number, num_gts + 1)
    gt_inds = torch.full_like(best, num_gts + 1, dtype=torch.int64).scatter_reduce(1, flat, first, "amin")
    return Chosen(torch.where(gt_inds > num_gts, 0, gt_inds), best)


def at_candidates(values: Tensor, index: Tensor) -> Tensor:
    """Rows (N, G, K, D) of ``values`` (N, A, D) at the priors ``index`` (N, G, K)."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).unflatten(1, index.shape[1:])


def check_classes(ground_truth: GroundTruth, num_classes: int, name: str) -> None:
    """Refuse objects whose label is none of the ``num_classes`` that are predicted; ``name`` is who asks.

    Raises:
        RuntimeError: There is one. The check waits for no device; on a GPU it stops the process at the next wait.
    """
    labels = ground_truth.labels
    if labels.device.type != "meta":
        fine = ((labels >= 0) & (labels < num_classes)) | ~ground_truth.valid
        torch._assert_async(fine.all(), f"{name}: the label of an object lies outside [0, {num_classes})")


def present_only(prior_valid: Tensor | None, *predictions: Tensor) -> tuple[Tensor, ...]:
    """Predictions (N, A, D) with zeros at priors that take no part: whatever they predict there must not count."""
    if prior_valid is None:
        return predictions
    return tuple(torch.where(prior_valid.unsqueeze(-1), one, 0) for one in predictions)


def of_class(by_class: Tensor, labels: Tensor) -> Tensor:
    """Rows (N, G, A) of ``by_class`` (N, C, A) at the class ``labels`` (N, G) of each object, copied whole."""
    num_images, num_classes, _ = by_class.shape
    first = torch.arange(num_images, device=labels.device).unsqueeze(1) * num_classes
    return by_class.flatten(0, 1).index_select(0, (labels + first).flatten()).unflatten(0, labels.shape)


def inside_boxes(x: Tensor, y: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """Whether points lie inside boxes by more than ``margin`` pixels; all arguments broadcast.

    Args:
        x: (...).
        y: (...).
        boxes: (..., 4).
        margin: Least distance from each side.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    nearest = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    return nearest > margin
