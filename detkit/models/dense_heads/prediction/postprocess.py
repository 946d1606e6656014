"""From dense predictions to detections: candidates per level, decoding, suppression."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.ops import NMSCfg
from detkit.ops.values import check_limit, check_range
from detkit.registry import check_keys, where
from detkit.structures.boxes import get_box_wh

__all__ = [
    "PROPOSAL_CFG_KEYS",
    "TEST_CFG_KEYS",
    "Candidates",
    "DenseTestCfg",
    "detections",
    "filter_scores_and_topk",
    "rescaled_boxes",
    "select_candidates",
    "suppress_images",
]

TEST_CFG_KEYS = ("nms_pre", "min_bbox_size", "score_thr", "nms", "max_per_img")
# What proposals may have besides.
PROPOSAL_CFG_KEYS = (*TEST_CFG_KEYS, "nms_post")


@dataclass(frozen=True)
class DenseTestCfg:
    """What ``test_cfg`` says to a dense head.

    Attributes:
        nms_pre: Candidates kept per level; None or a negative number keeps all.
        min_bbox_size: Boxes must be wider and higher than this; off where negative.
        score_thr: Candidates must score more than this, in [0, 1].
        nms: Suppression; a dict is read by :meth:`NMSCfg.of`, None leaves it out.
        max_per_img: Detections kept per image; a negative number keeps all.
        nms_post: Proposals kept per level after suppression; None or a negative number keeps all.

    Raises:
        KeyError: A key nothing reads, here or in ``nms``.
        TypeError: A value of another type.
        ValueError: A value out of its range, or an unknown kind of suppression.
    """

    nms_pre: int | None = None
    min_bbox_size: float = -1
    score_thr: float = 0.0
    nms: NMSCfg | Mapping[str, Any] | None = None
    max_per_img: int = -1
    nms_post: int | None = None

    def __post_init__(self) -> None:
        place = f"{where()}.test_cfg" if where() else "test_cfg"
        check_limit(f"{place}.nms_pre", self.nms_pre, optional=True)
        check_limit(f"{place}.max_per_img", self.max_per_img)
        check_limit(f"{place}.nms_post", self.nms_post, optional=True)
        check_range(f"{place}.min_bbox_size", self.min_bbox_size)
        check_range(f"{place}.score_thr", self.score_thr, 0, 1)
        if not isinstance(self.nms, NMSCfg):
            object.__setattr__(self, "nms", NMSCfg.of(self.nms, "test_cfg.nms"))

    @classmethod
    def of(cls, test_cfg: Mapping[str, Any] | None, keys: Sequence[str] = TEST_CFG_KEYS) -> DenseTestCfg:
        """Read a ``test_cfg`` dict; a key that is not one of ``keys`` is a KeyError."""
        check_keys(test_cfg, keys, "test_cfg")
        return cls(**(test_cfg or {}))


@dataclass(frozen=True)
class Candidates:
    """The K best (prior, class) pairs of each image.

    Attributes:
        scores: (N, K), score factors multiplied in.
        labels: (N, K).
        boxes: (N, K, 4).
        kept: (N, K) bool, class score above the threshold.
        extra: (N, K, E), what ``decode`` gave of each box besides, E >= 0; None where nothing was decoded.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    kept: Tensor
    extra: Tensor | None = None


def select_candidates(
    scores: Sequence[Tensor],
    predictions: Sequence[Tensor],
    priors: Sequence[Tensor],
    decode: Callable[[Tensor, Tensor], Tensor],
    cfg: DenseTestCfg,
    score_factors: Sequence[Tensor] | None = None,
    logits: bool = False,
) -> Candidates:
    """Choose before decoding: the best pairs of each level, over the whole batch at once.

    Class scores choose: ``nms_pre`` and ``score_thr`` look at them alone. What is chosen then scores the product
    with its factor.

    Args:
        scores: Per level (N, A_l, C) in [0, 1].
        predictions: Per level (N, A_l, E) encoded boxes.
        priors: Per level (A_l, P).
        decode: ``(priors (N, K, P), predictions (N, K, E)) -> (N, K, 4 + E)``, boxes
            and what else follows from decoding.
        cfg: Thresholds.
        score_factors: Per level (N, A_l) in [0, 1], how well the box of each prior fits: centerness, IoU.
        logits: ``scores`` and ``score_factors`` are given before their sigmoid, which then is computed of few.
    """
    chosen: list[tuple[Tensor, ...]] = []
    factors = [None] * len(scores) if score_factors is None else score_factors
    for level_scores, level_predictions, level_priors, factor in zip(scores, predictions, priors, factors, strict=True):
        num_classes = level_scores.shape[2]
        choose = _best_above if level_scores.device.type == "cpu" else _best
        if num_classes == 1:
            choose = _best_of_one
        value, index = choose(level_scores, cfg, logits)
        prior = index // num_classes
        gather = prior.unsqueeze(-1).expand(*prior.shape, level_predictions.shape[2])
        chosen_factors = () if factor is None else (factor.gather(1, prior),)
        of_predictions = level_predictions.gather(1, gather)
        chosen.append((value, index % num_classes, level_priors[prior], of_predictions, *chosen_factors))
    value, labels, of_priors, of_predictions, *of_factors = (
        torch.cat(parts, dim=1) for parts in zip(*chosen, strict=True)
    )
    kept = value > cfg.score_thr
    for chosen_factor in of_factors:
        value = value * (chosen_factor.sigmoid() if logits else chosen_factor)
    decoded = decode(of_priors, of_predictions)
    return Candidates(value, labels, decoded[..., :4], kept, decoded[..., 4:])


def _best(scores: Tensor, cfg: DenseTestCfg, logits: bool) -> tuple[Tensor, Tensor]:
    """Scores (N, K) and indices (N, K) of the ``nms_pre`` best pairs of (N, A, C), without waiting for the device."""
    flat = scores.flatten(1)
    return _top(flat.sigmoid() if logits else flat, _count(cfg.nms_pre, flat.shape[1]))


def _best_of_one(scores: Tensor, cfg: DenseTestCfg, logits: bool) -> tuple[Tensor, Tensor]:
    """As :func:`_best` of one class, as a proposal has: hardly any prior is below the threshold.

    Where there are more than are kept, equal scores come in the order of ``topk``, else in that of the priors, as
    MMDetection's proposals do.
    """
    flat = scores.flatten(1)
    flat = flat.sigmoid() if logits else flat
    count = _count(cfg.nms_pre, flat.shape[1])
    if count == flat.shape[1]:
        return flat, torch.arange(count, device=flat.device).expand_as(flat)
    return flat.topk(count, dim=1)


def _best_above(scores: Tensor, cfg: DenseTestCfg, logits: bool) -> tuple[Tensor, Tensor]:
    """As :func:`_best`, but only of what is above the threshold, which is little; rows are filled up with 0.

    Needs to know how many these are, which a CPU tells at once.
    """
    batch_size, num_priors, num_classes = scores.shape
    threshold = _logit_below(cfg.score_thr) if logits else cfg.score_thr
    rows = scores.flatten(0, 1)
    # Priors first: their maxima are quicker to find, and far fewer to look through, than pairs.
    prior = (rows.amax(dim=1) > threshold).nonzero().squeeze(1)
    few = rows[prior]
    row, label = (few > threshold).nonzero(as_tuple=True)
    value = few[row, label].sigmoid() if logits else few[row, label]
    image, place = prior[row] // num_priors, prior[row] % num_priors
    counts = torch.bincount(image, minlength=batch_size)
    column = torch.arange(len(image)) - (counts.cumsum(0) - counts)[image]
    columns = int(counts.max())
    table, of_table = scores.new_zeros(batch_size, columns), place.new_zeros(batch_size, columns)
    table[image, column], of_table[image, column] = value, place * num_classes + label
    best, position = _top(table, _count(cfg.nms_pre, columns))
    return best, of_table.gather(1, position)


def _count(nms_pre: int | None, available: int) -> int:
    return available if nms_pre is None or nms_pre < 0 else min(nms_pre, available)


def _logit_below(score: float) -> float:
    """A logit whose sigmoid is surely not above ``score``, however it is rounded, and close to it."""
    if score <= 0:
        return -math.inf
    logit = math.log(score) - math.log1p(-min(score, 0.999))
    return logit - 1e-4 * (1 + abs(logit))


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
    """Suppress and cut off, all images in one call.

    Args:
        candidates: Of N images.
        metas: Image facts; ``scale_factor`` (w, h) is 1 where no step of the pipeline has resized.
        cfg: Thresholds.
        rescale: Return boxes in the frame of the original image.

    Returns:
        Per image ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.
    """
    boxes, kept = candidates.boxes, candidates.kept
    if rescale:
        boxes = rescaled_boxes(boxes, metas)
    if cfg.min_bbox_size >= 0:
        width, height = get_box_wh(boxes)
        kept = kept & (width > cfg.min_bbox_size) & (height > cfg.min_bbox_size)
    image, place = kept.nonzero(as_tuple=True)
    boxes, scores, labels = (part[image, place] for part in (boxes, candidates.scores, candidates.labels))
    return suppress_images(boxes, scores, labels, image, len(metas), cfg.nms, cfg.max_per_img)


def suppress_images(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor,
    num_images: int,
    nms: NMSCfg | Mapping[str, Any] | None,
    max_per_img: int = -1,
) -> list[InstanceData]:
    """Suppression within each image, and within each class where it is not ``class_agnostic``, in one call.

    Waits for the device twice: for the boxes that stay, and for their number in each image.

    Args:
        boxes: (D, 4).
        scores: (D,).
        labels: (D,).
        images: (D,) index of the image of each box.
        num_images: Images, N.
        nms: Suppression; None only sorts.
        max_per_img: Detections kept of an image; a negative number keeps all.

    Returns:
        Per image ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.
    """
    nms = nms if isinstance(nms, NMSCfg) else NMSCfg.of(nms)
    limits = [limit for limit in (max_per_img, nms.max_num) if limit is not None and limit >= 0]
    limit = min(limits, default=None)
    if nms.suppress is None:
        scores, keep = scores.sort(descending=True, stable=True)
    else:
        groups = images if nms.class_agnostic or len(labels) == 0 else images * (labels.max() + 1) + labels
        scores, keep = nms.suppress(boxes, scores, groups, limit)
    of_images, order = images[keep].sort(stable=True)
    counts = torch.bincount(of_images, minlength=num_images).tolist()
    keep = keep[order]
    parts = [part.split(counts) for part in (boxes[keep], scores[order], labels[keep])]
    return [
        InstanceData(bboxes=of_boxes[:limit], scores=of_scores[:limit], labels=of_labels[:limit])
        for of_boxes, of_scores, of_labels in zip(*parts, strict=True)
    ]


def rescaled_boxes(boxes: Tensor, metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """Boxes (N, K, 4) in the frames of the original images, from which ``scale_factor`` (w, h) leads to these."""
    back = [[1 / factor for factor in meta.get("scale_factor", (1.0, 1.0))] for meta in metas]
    if all(factor == 1 for factors in back for factor in factors):
        return boxes
    rows = torch.tensor([factors * (4 // len(factors)) for factors in back], dtype=boxes.dtype)
    return boxes * rows.to(boxes.device, non_blocking=True).unsqueeze(1)
