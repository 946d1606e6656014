"""The loss of masks that RoIs predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.roi_heads.mask_heads.mask_targets import Masks, mask_targets
from detkit.models.roi_heads.sampling import PositiveRoIs

__all__ = ["mean_over_processes", "roi_mask_loss"]


def mean_over_processes(loss: Tensor, count: int) -> Tensor:
    """A mean over ``count`` objects of this process as one over those of all processes.

    A process of few objects would else give each of them more weight than others do.
    """
    own = torch.full((), float(count), device=loss.device)
    return loss * (count / reduce_mean(own, least=1))


def roi_mask_loss(
    mask_preds: Tensor,
    positives: PositiveRoIs,
    batch_masks: Masks,
    loss_mask: Callable[..., Tensor],
    mask_size: Any,
) -> dict[str, Any]:
    """``loss_mask``, a dict of losses, and ``mask_targets``, what the masks were to be.

    Args:
        mask_preds: Logits (K, C, h, w), C is 1 where all classes share a mask.
        positives: K RoIs.
        batch_masks: Masks of the objects of each image.
        loss_mask: Mean loss of (K, C, h, w), targets (K, h, w) and labels (K,).
        mask_size: Of the targets, (h, w) or a number for both.

    Raises:
        ValueError: Masks are predicted of another size.
    """
    targets = mask_targets(positives, batch_masks, mask_size)
    if mask_preds.shape[2:] != targets.shape[1:]:
        raise ValueError(
            f"train_cfg.mask_size {tuple(targets.shape[1:])} must be what the mask head predicts, "
            f"{tuple(mask_preds.shape[2:])}"
        )
    labels = torch.zeros_like(positives.labels) if mask_preds.shape[1] == 1 else positives.labels
    loss = mean_over_processes(loss_mask(mask_preds, targets, labels), len(labels))
    return {"loss_mask": {"loss_mask": loss}, "mask_targets": targets}
