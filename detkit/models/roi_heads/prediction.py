"""From classified regions to detections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.dense_heads.prediction.postprocess import suppress_images
from detkit.ops import NMSCfg
from detkit.ops.values import check_limit, check_range
from detkit.registry import check_keys, where

__all__ = ["ROI_TEST_CFG_KEYS", "RoITestCfg", "clip_to_images", "roi_detections"]

ROI_TEST_CFG_KEYS = ("score_thr", "nms", "max_per_img", "mask_thr_binary", "rle_masks")

# ``(rows (K,), labels (K,)) -> boxes (K, 4), factors (K,) of their scores or None``.
Decode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class RoITestCfg:
    """What ``test_cfg.rcnn`` says.

    Attributes:
        score_thr: Detections must score more than this, in [0, 1].
        nms: Suppression; a dict is read by :meth:`NMSCfg.of`, None leaves it out.
        max_per_img: Detections kept per image; all where not positive.
        mask_thr_binary: Probability from which a pixel is of the object; a negative number returns probabilities,
            times 255, as uint8.
        rle_masks: Return masks as COCO's compressed run lengths instead of (D, H, W): a hundred masks of a large image
            take kilobytes then.

    Raises:
        KeyError: A key nothing reads, here or in ``nms``.
        TypeError: A value of another type.
        ValueError: A value out of its range, or an unknown kind of suppression.
    """

    score_thr: float = 0.0
    nms: NMSCfg | Mapping[str, Any] | None = None
    max_per_img: int = -1
    mask_thr_binary: float = 0.5
    rle_masks: bool = False

    def __post_init__(self) -> None:
        place = f"{where()}.test_cfg" if where() else "test_cfg"
        check_range(f"{place}.score_thr", self.score_thr, 0, 1)
        check_limit(f"{place}.max_per_img", self.max_per_img)
        check_range(f"{place}.mask_thr_binary", self.mask_thr_binary)
        if self.rle_masks and self.mask_thr_binary < 0:
            raise ValueError(f"{place}.rle_masks needs a mask_thr_binary of at least 0, got {self.mask_thr_binary}")
        if not isinstance(self.nms, NMSCfg):
            object.__setattr__(self, "nms", NMSCfg.of(self.nms, "test_cfg.nms"))

    @classmethod
    def of(cls, test_cfg: Mapping[str, Any] | None) -> RoITestCfg:
        """Read a ``test_cfg`` dict; an unknown key is a KeyError."""
        check_keys(test_cfg, ROI_TEST_CFG_KEYS, "test_cfg")
        return cls(**(test_cfg or {}))


def roi_detections(
    scores: Tensor,
    valid: Tensor,
    decode: Decode,
    metas: Sequence[Mapping[str, Any]],
    cfg: RoITestCfg,
    rescale: bool,
) -> list[InstanceData]:
    """Choose (region, class) pairs by their scores, decode these alone, suppress; all images at once.

    Args:
        scores: (N, P, C) in [0, 1].
        valid: (N, P) bool, which regions there are.
        decode: Boxes of pairs; rows count the N * P regions.
        metas: Image facts ``img_shape`` and, where resized, ``scale_factor``.
        cfg: Thresholds.
        rescale: Return boxes in the frame of the original image.

    Returns:
        Per image ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.
    """
    above = (scores > cfg.score_thr) & valid.unsqueeze(-1)
    image, place, labels = above.nonzero(as_tuple=True)
    chosen = scores[image, place, labels]
    boxes, factors = decode(image * scores.shape[1] + place, labels)
    if factors is not None:
        chosen = chosen * factors
    if rescale:
        scale = torch.tensor([tuple(meta.get("scale_factor", (1.0, 1.0))) * 2 for meta in metas], dtype=boxes.dtype)
        boxes = boxes / scale.to(boxes.device)[image]
    limit = cfg.max_per_img if cfg.max_per_img > 0 else -1
    return suppress_images(boxes, chosen, labels, image, len(metas), cfg.nms, limit)


def clip_to_images(boxes: Tensor, images: Tensor, metas: Sequence[Mapping[str, Any]]) -> Tensor:
    """Boxes (K, 4), each clipped to its image (K,)."""
    limits = torch.tensor([(*meta["img_shape"][1::-1], *meta["img_shape"][1::-1]) for meta in metas])
    limits = limits.to(boxes.device, boxes.dtype, non_blocking=True)
    return boxes.clamp(min=0).minimum(limits[images])
