"""From masks of boxes to masks of images, of a whole batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.roi_heads.mask_heads.pasting import encode_masks, paste_masks
from detkit.models.roi_heads.prediction import RoITestCfg

__all__ = ["of_own_class", "predict_masks"]


def of_own_class(masks: Tensor, labels: Tensor) -> Tensor:
    """Masks (K, h, w) of each one's label (K,), of masks (K, C, h, w); of (K, 1, h, w) the only ones."""
    if masks.shape[1] == 1:
        return masks.squeeze(1)
    index = labels.view(-1, 1, 1, 1).expand(-1, 1, *masks.shape[2:])
    return masks.gather(1, index).squeeze(1)


def predict_masks(
    mask_preds: Sequence[Tensor],
    found: list[InstanceData],
    metas: Sequence[Mapping[str, Any]],
    cfg: RoITestCfg,
    rescale: bool = False,
    activate_map: bool = False,
) -> list[InstanceData]:
    """The detections with ``masks`` and, where ``rescale``, boxes of the original image.

    Args:
        mask_preds: Of each image logits (D, C, h, w), C is 1 where all classes share a mask.
        found: Of each image ``bboxes`` (D, 4) in the frame of the network's input, and ``labels`` (D,).
        metas: ``ori_shape`` and, where resized, ``scale_factor``.
        cfg: ``mask_thr_binary`` and ``rle_masks``.
        rescale: Masks and boxes of the original image instead of the network's input.
        activate_map: ``mask_preds`` are probabilities already.

    Returns:
        ``masks`` are (D, H, W) bool, uint8 where ``mask_thr_binary`` is negative, or run lengths.
    """
    for logits, one, meta in zip(mask_preds, found, metas, strict=True):
        across, down = meta.get("scale_factor", (1.0, 1.0))
        height, width = meta["ori_shape"][:2]
        if rescale:
            one.bboxes = one.bboxes / torch.tensor([across, down, across, down]).to(one.bboxes)
        else:
            height, width = round(height * down), round(width * across)
        own = of_own_class(logits, one.labels).float()
        paste = encode_masks if cfg.rle_masks else paste_masks
        one.masks = paste(own if activate_map else own.sigmoid(), one.bboxes, (height, width), cfg.mask_thr_binary)
    return found
