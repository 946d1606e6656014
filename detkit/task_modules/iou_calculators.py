"""Box overlaps as a module that a config can swap."""

from __future__ import annotations

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import bbox_overlaps

__all__ = ["BboxOverlaps2D"]


@TASK_UTILS.register_module()
class BboxOverlaps2D:
    """IoU, IoF or GIoU of boxes.

    Args:
        scale: With ``dtype='fp16'``, boxes are divided by it first, so that their areas fit the range.
        dtype: ``fp16`` computes in half precision; None in that of the boxes.
    """

    def __init__(self, scale: float = 1.0, dtype: str | None = None) -> None:
        if dtype not in (None, "fp16"):
            raise ValueError(f"BboxOverlaps2D: dtype must be None or 'fp16', got {dtype!r}")
        self.scale = scale
        self.dtype = dtype

    def __call__(self, bboxes1: Tensor, bboxes2: Tensor, mode: str = "iou", is_aligned: bool = False) -> Tensor:
        """Overlaps (..., M, N), or (..., M) where ``is_aligned``.

        Args:
            bboxes1: (..., M, 4), or (..., M, 5) with a score that does not count.
            bboxes2: (..., N, 4) or (..., N, 5).
            mode: ``iou``, ``iof`` or ``giou``.
            is_aligned: Compare pair by pair.
        """
        bboxes1, bboxes2 = bboxes1[..., :4], bboxes2[..., :4]
        if self.dtype == "fp16":
            bboxes1, bboxes2 = ((b / self.scale).half() for b in (bboxes1, bboxes2))
            overlaps = bbox_overlaps(bboxes1, bboxes2, mode, is_aligned)
            # Later steps have no half-precision kernels on the CPU.
            return overlaps if overlaps.is_cuda else overlaps.float()
        return bbox_overlaps(bboxes1, bboxes2, mode, is_aligned)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale}, dtype={self.dtype})"
