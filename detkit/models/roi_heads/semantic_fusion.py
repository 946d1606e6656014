"""What a semantic head, which looks at the whole image, gives to regions and learns (HTC, SCNet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.structures import DetDataSample

__all__ = ["add_semantic", "check_semantic", "semantic_loss"]


def check_semantic(extractor: Mapping[str, Any] | None, head: Mapping[str, Any] | None, name: str) -> None:
    """Refuse one of the two without the other; ``name`` is the RoI head's."""
    if (extractor is None) != (head is None):
        missing = "semantic_roi_extractor" if extractor is None else "semantic_head"
        raise ValueError(f"{name}: semantic_head and semantic_roi_extractor come together; {missing} is missing")


def add_semantic(feats: Tensor, semantic: Tensor, rois: Tensor, extractor: nn.Module) -> Tensor:
    """Features (R, C, rows, columns) of RoIs (R, 5) with those of the semantic map (N, C, H, W) added."""
    added = extractor([semantic], rois)
    if added.shape[2:] != feats.shape[2:]:
        added = F.adaptive_avg_pool2d(added, (feats.shape[2], feats.shape[3]))
    return feats + added


def semantic_loss(head: Any, pred: Tensor, batch_data_samples: Sequence[DetDataSample], name: str) -> Tensor:
    """Loss () of semantic logits.

    Args:
        head: With ``loss(pred, maps (N, 1, H, W))``.
        pred: What it predicts.
        batch_data_samples: With ``gt_sem_seg``.
        name: Of the RoI head, for the message.

    Raises:
        ValueError: A sample has no semantic map, or they are of several sizes.
    """
    missing = [str(one.get("img_path")) for one in batch_data_samples if "gt_sem_seg" not in one]
    if missing:
        raise ValueError(
            f"{name}: semantic_head learns from semantic maps (data_prefix.seg of the dataset, with_seg=True of "
            f"LoadAnnotations); there is none of {missing[0]}"
        )
    maps = [one.gt_sem_seg.sem_seg for one in batch_data_samples]
    sizes = sorted({tuple(one.shape[-2:]) for one in maps})
    if len(sizes) > 1:
        raise ValueError(
            f"{name}: semantic maps of a batch must have one size, got {', '.join(map(str, sizes))}; are they padded "
            "as the images are (pad_seg=True of the data preprocessor)?"
        )
    return head.loss(pred, torch.stack(maps))
