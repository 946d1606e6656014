"""Non-maximum suppression, by MMCV's names and arguments, on torchvision's kernel.

A suppression is a small class named in :data:`NMS_KINDS`; its arguments are what ``nms_cfg`` may say beside ``type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from detkit.ops.nms_rows import FAR, kept_mask
from detkit.ops.soft_nms import SoftNMS
from detkit.ops.values import check_limit, check_range
from detkit.registry import check_keys, nearest, where

__all__ = ["NMS_KINDS", "HardNMS", "NMSCfg", "batched_nms", "nms"]

# Every box that is kept is compared with all that follow: on a CPU, groups go to the kernel a few at a time.
CPU_CHUNK = 512
# The kernel's time grows with the square of the boxes of a call: more than these go by rows.
CUDA_CALL = 2048

Suppress = Callable[[Tensor, Tensor, Tensor | None, int | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class HardNMS:
    """Drop every box that overlaps a better one of its group by more than ``iou_threshold``.

    Attributes:
        iou_threshold: In [0, 1].
        offset: 0, or 1 where x2 and y2 are the last pixel of a box.
        score_threshold: Boxes must score more than this where it is above 0.
    """

    iou_threshold: float
    offset: int = 0
    score_threshold: float = 0.0

    def __post_init__(self) -> None:
        check_range("iou_threshold", self.iou_threshold, 0, 1)
        check_range("offset", self.offset, 0, 1)
        check_range("score_threshold", self.score_threshold)

    def __call__(
        self, boxes: Tensor, scores: Tensor, groups: Tensor | None, limit: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores (K,) and indices (K,) of what stays, best first; of equal scores the first.

        Args:
            boxes: (D, 4).
            scores: (D,).
            groups: (D,) non-negative; boxes of different groups do not meet. None is one group.
            limit: Is for kinds that stop early; here the best come for nothing.
        """
        del limit
        index = None
        if self.score_threshold > 0:
            index = (scores > self.score_threshold).nonzero().squeeze(1)
            boxes, scores, groups = boxes[index], scores[index], None if groups is None else groups[index]
        # torchvision's kernel knows no half precision on the CPU and loses boxes in it elsewhere.
        full = boxes if boxes.dtype == torch.float64 else boxes.float()
        if self.offset:
            full = torch.cat([full[:, :2], full[:, 2:] + self.offset], dim=1)
        if groups is None or len(full) == 0:
            keep = torchvision.ops.nms(full, scores.to(full.dtype), self.iou_threshold)
        elif full.device.type == "cpu" and len(full) > CPU_CHUNK:
            keep = _keep_by_chunks(full, scores, groups, self.iou_threshold)
        elif full.device.type == "cuda" and len(full) > CUDA_CALL:
            keep = _keep_in_rows(full, scores, groups, self.iou_threshold)
        else:
            keep = _keep_of_groups(full, scores, groups, self.iou_threshold)
        kept_scores = scores[keep]
        return kept_scores, keep if index is None else index[keep]


def _keep_of_groups(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices kept, best first, of one call."""
    # Groups are moved so far apart that they cannot touch; in float64, or far away boxes would be rounded. With
    # infinite ones groups could not be told apart.
    apart = boxes.double().clamp(-FAR, FAR)
    low, high = apart.nan_to_num(nan=0.0).aminmax()
    apart = apart - low + (groups * (high - low + 1))[:, None]
    return torchvision.ops.nms(apart, scores.double(), iou_threshold)


def _keep_by_chunks(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """As :func:`_keep_of_groups`, whole groups of about ``CPU_CHUNK`` boxes at a time."""
    by_group, order = groups.sort(stable=True)
    boxes, own_scores = boxes[order], scores[order]
    kept, start = [], 0
    # On a CPU arrays tell without a word to the device what is where.
    ends = [*(np.flatnonzero(np.diff(by_group.numpy())) + 1).tolist(), len(order)]
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        if following is None or following - start > CPU_CHUNK:
            part = slice(start, end)
            kept.append(start + _keep_of_groups(boxes[part], own_scores[part], by_group[part], iou_threshold))
            start = end
    return _best_first(order[torch.cat(kept)].sort().values, scores)


def _keep_in_rows(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """As :func:`_keep_of_groups`, of many boxes on a GPU."""
    return _best_first(kept_mask(boxes, scores, groups, iou_threshold).nonzero().squeeze(1), scores)


def _best_first(keep: Tensor, scores: Tensor) -> Tensor:
    return keep[scores[keep].argsort(descending=True, stable=True)]


NMS_KINDS: dict[str, Callable[..., Suppress]] = {"nms": HardNMS, "soft_nms": SoftNMS}


@dataclass(frozen=True)
class NMSCfg:
    """What an ``nms_cfg`` says.

    Attributes:
        suppress: ``(boxes, scores, groups, limit) -> scores, indices``, best first; None suppresses nothing.
        class_agnostic: Boxes of different classes suppress each other.
        max_num: Boxes kept of a call; None keeps all.
    """

    suppress: Suppress | None = None
    class_agnostic: bool = False
    max_num: int | None = None

    @classmethod
    def of(cls, nms_cfg: Mapping[str, Any] | None, name: str = "nms") -> NMSCfg:
        """Read ``nms_cfg``: ``type``, the arguments of that kind, ``class_agnostic`` and ``max_num``.

        Args:
            nms_cfg: The dict; ``split_thr`` is MMCV's and has no effect. None only sorts by score.
            name: Its name in the config, for errors.

        Raises:
            KeyError: A key nothing reads.
            TypeError: A value of another type, or one that is missing.
            ValueError: An unknown ``type``, or a value out of its range.
        """
        if nms_cfg is None:
            return cls()
        place = ".".join(part for part in (where(), name) if part)
        if not isinstance(nms_cfg, Mapping):
            raise TypeError(
                f"{place}: a dict such as dict(type='nms', iou_threshold=0.5) was expected, got {nms_cfg!r}"
            )
        arguments = {key: value for key, value in nms_cfg.items() if key not in _COMMON}
        kind = nms_cfg.get("type", "nms")
        if kind not in NMS_KINDS:
            close, known = nearest(str(kind), NMS_KINDS)[0], ", ".join(sorted(NMS_KINDS))
            raise ValueError(f"{place}.type: unknown kind {kind!r}; did you mean {close!r}? Known: {known}")
        build = NMS_KINDS[kind]
        own = fields(build)  # type: ignore[arg-type]
        check_keys(nms_cfg, (*_COMMON, *(field.name for field in own)), name)
        for field in own:
            if field.default is MISSING and field.name not in arguments:
                raise TypeError(f"{place}: {field.name!r} is missing, which type={kind!r} needs")
        try:
            max_num = nms_cfg.get("max_num")
            check_limit("max_num", max_num or -1)
            suppress = build(**arguments)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{place}.{error}") from None
        limit = max_num if max_num is not None and max_num > 0 else None
        return cls(suppress, bool(nms_cfg.get("class_agnostic", False)), limit)


_COMMON = ("type", "class_agnostic", "split_thr", "max_num")
# Every key that some kind reads.
NMS_KEYS = (*_COMMON, *sorted({field.name for kind in (HardNMS, SoftNMS) for field in fields(kind)}))


def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    offset: int = 0,
    score_threshold: float = 0.0,
    max_num: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Drop every box that overlaps a better one by more than ``iou_threshold``.

    Args:
        boxes: (D, 4).
        scores: (D,).
        iou_threshold: In [0, 1].
        offset: 0, or 1 where x2 and y2 are the last pixel of a box.
        score_threshold: Boxes must score more than this where it is above 0.
        max_num: Boxes kept; all where None or not positive.

    Returns:
        Boxes with scores (K, 5), best first, and their indices (K,) in ``boxes``.
    """
    kept_scores, keep = HardNMS(iou_threshold, offset, score_threshold)(boxes, scores, None)
    if max_num is not None and max_num > 0:
        kept_scores, keep = kept_scores[:max_num], keep[:max_num]
    return torch.cat([boxes[keep], kept_scores[:, None]], dim=1), keep


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, nms_cfg: Mapping[str, Any] | None, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Suppression within each group of ``idxs``, in one call.

    Args:
        boxes: (D, 4).
        scores: (D,).
        idxs: (D,) group of each box, usually its label.
        nms_cfg: See :meth:`NMSCfg.of`; ``class_agnostic`` overrides the argument.
        class_agnostic: Let boxes of different groups suppress each other.

    Returns:
        Boxes with scores (K, 5), best first, and their indices (K,) in ``boxes``. Soft suppression changes scores.

    Raises:
        KeyError: A key of ``nms_cfg`` nothing reads.
        ValueError: An unknown ``type``, or a value out of its range.
    """
    cfg = NMSCfg.of(nms_cfg)
    if cfg.suppress is None:
        kept_scores, keep = scores.sort(descending=True, stable=True)
    else:
        together = cfg.class_agnostic or (class_agnostic and "class_agnostic" not in (nms_cfg or {}))
        kept_scores, keep = cfg.suppress(boxes, scores, None if together else idxs, cfg.max_num)
    if cfg.max_num is not None:
        kept_scores, keep = kept_scores[: cfg.max_num], keep[: cfg.max_num]
    return torch.cat([boxes[keep], kept_scores[:, None]], dim=1), keep
