"""From dense predictions to detections: candidates per level, decoding, suppression."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.ops import batched_nms
from detkit.registry import check_keys
from detkit.structures.boxes import get_box_wh, scale_boxes

__all__ = [
    "TEST_CFG_KEYS",
    "Candidates",
    "DenseTestCfg",
    "detections",
    "filter_scores_and_topk",
    "select_candidates",
]

TEST_CFG_KEYS = ("nms_pre", "min_bbox_size", "score_thr", "nms", "max_per_img")


@dataclass(frozen=True)
class DenseTestCfg:
    """What ``test_cfg`` says to a dense head.

    Attributes:
        nms_pre: Candidates kept per level; None or a negative number keeps all.
        min_bbox_size: Boxes must be wider and higher than this; off where negative.
        score_thr: Candidates must score more than this.
        nms: Suppression, see ``batched_nms``; None leaves it out.
        max_per_img: Detections kept per image; a negative number keeps all.
    """

    nms_pre: int | None = None
    min_bbox_size: float = -1
    score_thr: float = 0.0
    nms: Mapping[str, Any] | None = None
    max_per_img: int = -1

    @classmethod
    def of(cls, test_cfg: Mapping[str, Any] | None) -> DenseTestCfg:
        """Read a ``test_cfg`` dict; an unknown key is a KeyError."""
        check_keys(test_cfg, TEST_CFG_KEYS, "test_cfg")
        return cls(**(test_cfg or {}))


@dataclass(frozen=True)
class Candidates:
    """The K best (prior, class) pairs of each image.

    Attributes:
        scores: (N, K), score factors multiplied in.
        labels: (N, K).
        boxes: (N, K, 4).
        kept: (N, K) bool, class score above the threshold.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    kept: Tensor


def select_candidates(
    scores: Sequence[Tensor],
    predictions: Sequence[Tensor],
    priors: Sequence[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    cfg: DenseTestCfg,
    score_factors: Sequence[Tensor] | None = None,
) -> Candidates:
    """Choose before decoding: the best pairs of each level, over the whole batch at once.

    Class scores choose: ``nms_pre`` and ``score_thr`` look at them alone. What is chosen then scores the product
    with its factor.

    Args:
        scores: Per level (N, A_l, C) in [0, 1].
        predictions: Per level (N, A_l, E) encoded boxes.
        priors: Per level (A_l, P).
        decode: ``(priors (N, K, P), predictions (N, K, E)) -> boxes (N, K, 4)``.
        cfg: Thresholds.
        score_factors: Per level (N, A_l) in [0, 1], how well the box of each prior fits: centerness, IoU.
    """
    chosen_scores, chosen_labels, chosen_predictions, chosen_priors, chosen_factors = [], [], [], [], []
    factors = [None] * len(scores) if score_factors is None else score_factors
    for level_scores, level_predictions, level_priors, factor in zip(scores, predictions, priors, factors, strict=True):
        num_classes = level_scores.shape[2]
        flat = level_scores.flatten(1)
        count = flat.shape[1] if cfg.nms_pre is None or cfg.nms_pre < 0 else min(cfg.nms_pre, flat.shape[1])
        value, index = _top(flat, count)
        prior = index // num_classes
        chosen_scores.append(value)
        chosen_labels.append(index % num_classes)
        gather = prior.unsqueeze(-1).expand(*prior.shape, level_predictions.shape[2])
        chosen_predictions.append(level_predictions.gather(1, gather))
        chosen_priors.append(level_priors[prior])
        if factor is not None:
            chosen_factors.append(factor.gather(1, prior))
    value = torch.cat(chosen_scores, dim=1)
    kept = value > cfg.score_thr
    if chosen_factors:
        value = value * torch.cat(chosen_factors, dim=1)
    boxes = decode(torch.cat(chosen_priors, dim=1), torch.cat(chosen_predictions, dim=1))
    return Candidates(value, torch.cat(chosen_labels, dim=1), boxes, kept)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best scores (N, count) of (N, M) and their indices; of equal scores the first come first.

    ``topk`` leaves the order of equal scores open, and saturated scores are many. Non-negative floats
    sort as their bits do, so score and position make one integer key; of float64 there are no bits left.
    """
    if scores.dtype == torch.float64:
        value, index = scores.sort(dim=1, descending=True, stable=True)
        return value[:, :count], index[:, :count]
    position = torch.arange(scores.shape[1], device=scores.device)
    keys = (scores.float().view(torch.int32).long() << 32) + (scores.shape[1] - position)
    index = keys.topk(count, dim=1).indices
    return scores.gather(1, index), index


def filter_scores_and_topk(
    scores: Tensor, score_thr: float, topk: int | None, results: Any = None
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """The best (prior, class) pairs above a threshold, best first; of equal scores the first.

    Waits for the device, as the number of pairs is needed; :func:`select_candidates` does not.

    Args:
        scores: (A, C).
        score_thr: Pairs must score more than this.
        topk: Pairs kept; None or a negative number keeps all.
        results: A tensor (A, ...), or a dict or list of such, to choose from too.

    Returns:
        Scores (K,), labels (K,), indices (K,) of the priors, and ``results`` at these.

    Raises:
        ValueError: ``scores`` has another shape.
        TypeError: ``results`` is of another type.
    """
    if scores.dim() != 2:
        raise ValueError(f"filter_scores_and_topk: scores have shape {tuple(scores.shape)}, expected (A, C)")
    above = (scores > score_thr).nonzero()
    values, order = scores[above[:, 0], above[:, 1]].sort(descending=True, stable=True)
    count = len(values) if topk is None or topk < 0 else topk
    index, labels = above[order[:count]].unbind(dim=1)
    chosen = results
    if isinstance(results, Tensor):
        chosen = results[index]
    elif isinstance(results, Mapping):
        chosen = {name: value[index] for name, value in results.items()}
    elif isinstance(results, list):
        chosen = [value[index] for value in results]
    elif results is not None:
        raise TypeError(f"filter_scores_and_topk: results must be a tensor, dict or list, got {type(results).__name__}")
    return values[:count], labels, index, chosen


def detections(
    candidates: Candidates, metas: Sequence[Mapping[str, Any]], cfg: DenseTestCfg, rescale: bool
) -> list[InstanceData]:
    """Suppress and cut off.

    Args:
        candidates: Of N images.
        metas: Image facts; ``scale_factor`` (w, h) is 1 where no step of the pipeline has resized.
        cfg: Thresholds.
        rescale: Return boxes in the frame of the original image.

    Returns:
        Per image ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.
    """
    results = []
    for index, meta in enumerate(metas):
        kept = candidates.kept[index]
        boxes, scores, labels = (part[index][kept] for part in (candidates.boxes, candidates.scores, candidates.labels))
        if rescale:
            boxes = scale_boxes(boxes, [1 / factor for factor in meta.get("scale_factor", (1.0, 1.0))])
        if cfg.min_bbox_size >= 0:
            width, height = get_box_wh(boxes)
            large = (width > cfg.min_bbox_size) & (height > cfg.min_bbox_size)
            boxes, scores, labels = boxes[large], scores[large], labels[large]
        dets, keep = batched_nms(boxes, scores, labels, cfg.nms)
        limit = len(keep) if cfg.max_per_img < 0 else cfg.max_per_img
        results.append(InstanceData(bboxes=dets[:limit, :4], scores=dets[:limit, 4], labels=labels[keep][:limit]))
    return results
