"""Non-maximum suppression, by MMCV's names and arguments, on torchvision's kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor

from detkit.registry import check_keys, nearest

__all__ = ["batched_nms", "nms"]

NMS_KEYS = ("type", "iou_threshold", "score_threshold", "max_num", "class_agnostic", "split_thr")


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float = 0.0, max_num: int | None = None
) -> tuple[Tensor, Tensor]:
    """Drop every box that overlaps a better one by more than ``iou_threshold``.

    Args:
        boxes: (D, 4).
        scores: (D,).
        iou_threshold: In [0, 1].
        score_threshold: Boxes must score more than this where it is above 0.
        max_num: Keep at most this many; None or a negative number keeps all.

    Returns:
        Boxes with scores (K, 5), best first, and their indices (K,) in ``boxes``.
    """
    # torchvision's kernel knows no half precision on the CPU and loses boxes in it elsewhere.
    kept_boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    kept_scores = scores.to(kept_boxes.dtype)
    index = None
    if score_threshold > 0:
        index = (kept_scores > score_threshold).nonzero().squeeze(1)
        kept_boxes, kept_scores = kept_boxes[index], kept_scores[index]
    keep = torchvision.ops.nms(kept_boxes, kept_scores, iou_threshold)
    if max_num is not None and max_num >= 0:
        keep = keep[:max_num]
    keep = keep if index is None else index[keep]
    return torch.cat([boxes[keep], scores[keep, None]], dim=1), keep


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: Mapping[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Suppression within each group of ``idxs``, in one call.

    Args:
        boxes: (D, 4).
        scores: (D,).
        idxs: (D,) group of each box, usually its label.
        nms_cfg: ``type='nms'`` and the arguments of :func:`nms`; ``class_agnostic`` overrides the argument;
            ``split_thr`` is MMCV's and has no effect here. None only sorts by score.
        class_agnostic: Let boxes of different groups suppress each other.

    Returns:
        Boxes with scores (K, 5), best first, and their indices (K,) in ``boxes``.

    Raises:
        KeyError: A key of ``nms_cfg`` nothing reads.
        ValueError: An unknown ``type``.
    """
    if nms_cfg is None:
        ordered, index = scores.sort(descending=True)
        return torch.cat([boxes[index], ordered[:, None]], dim=1), index
    check_keys(nms_cfg, NMS_KEYS, "nms")
    kind = nms_cfg.get("type", "nms")
    if kind != "nms":
        raise ValueError(f"nms.type: unknown kind {kind!r}; did you mean {nearest(str(kind), ['nms'])[0]!r}?")
    arguments = {key: value for key, value in nms_cfg.items() if key in ("iou_threshold", "score_threshold", "max_num")}
    apart = boxes
    if not nms_cfg.get("class_agnostic", class_agnostic) and boxes.numel() > 0:
        # Groups are moved so far apart that they cannot touch; in float64, or far away boxes would be rounded.
        apart = boxes.double() - boxes.min()
        apart = apart + (idxs * (apart.max() + 1))[:, None]
    _, keep = nms(apart, scores, **arguments)
    return torch.cat([boxes[keep], scores[keep, None]], dim=1), keep
