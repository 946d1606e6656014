"""Box overlaps as a module that a config can swap."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import get_box_tensor, raw_overlaps
from detkit.structures.precision import full_precision

__all__ = ["BboxOverlaps2D", "BboxOverlaps2D_GLIP"]


@TASK_UTILS.register_module()
class BboxOverlaps2D:
    """IoU, IoF or GIoU of boxes.

    Args:
        scale: With ``dtype='fp16'``, boxes are divided by it first, so that their areas fit the range.
        dtype: ``fp16`` computes in half precision, for half the memory; None in float32 at least.
    """

    border = 0.0  # what a box reaches beyond x2 and y2, in pixels

    def __init__(self, scale: float = 1.0, dtype: str | None = None) -> None:
        if dtype not in (None, "fp16"):
            raise ValueError(f"{type(self).__name__}: dtype must be None or 'fp16', got {dtype!r}")
        self.scale = scale
        self.dtype = dtype

    def __call__(
        self, bboxes1: Tensor | Any, bboxes2: Tensor | Any, mode: str = "iou", is_aligned: bool = False
    ) -> Tensor:
        """Overlaps (..., M, N), or (..., M) where ``is_aligned``.

        Args:
            bboxes1: (..., M, 4), or (..., M, 5) with a score that does not count; or a box type.
            bboxes2: (..., N, 4) or (..., N, 5); or a box type.
            mode: ``iou``, ``iof`` or ``giou``.
            is_aligned: Compare pair by pair.
        """
        bboxes1, bboxes2 = get_box_tensor(bboxes1)[..., :4], get_box_tensor(bboxes2)[..., :4]
        if self.dtype is None:
            bboxes1, bboxes2 = full_precision(bboxes1, bboxes2)
            return raw_overlaps(bboxes1, bboxes2, mode, is_aligned, border=self.border)
        bboxes1, bboxes2 = ((b / self.scale).half() for b in (bboxes1, bboxes2))
        overlaps = raw_overlaps(bboxes1, bboxes2, mode, is_aligned, border=self.border / self.scale)
        # Later steps have no half-precision kernels on the CPU.
        return overlaps if overlaps.is_cuda else overlaps.float()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale}, dtype={self.dtype})"


@TASK_UTILS.register_module()
class BboxOverlaps2D_GLIP(BboxOverlaps2D):
    """As :class:`BboxOverlaps2D`, of boxes whose x2 and y2 are their last pixel: ``x2 - x1 + 1`` wide.

    So GLIP counts, https://arxiv.org/abs/2112.03857. MMDetection's class of this name gives the IoU of all
    pairs whatever ``mode`` and ``is_aligned`` say; this one does what they say.

    Args:
        scale: As of :class:`BboxOverlaps2D`.
        dtype: As of :class:`BboxOverlaps2D`.
    """

    border = 1.0
