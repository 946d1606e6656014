"""The box coder of GLIP, https://arxiv.org/abs/2112.03857: decoded boxes end with their last pixel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detkit.registry import TASK_UTILS
from detkit.structures.boxes import MaxShape, stack_corners
from detkit.structures.precision import full_precision
from detkit.task_modules.coders.arguments import boxes_to_decode
from detkit.task_modules.coders.delta_xywh_bbox_coder import WH_RATIO_CLIP, DeltaXYWHBBoxCoder, sizes_of_delta

__all__ = ["DeltaXYWHBBoxCoderForGLIP"]


@TASK_UTILS.register_module()
class DeltaXYWHBBoxCoderForGLIP(DeltaXYWHBBoxCoder):
    """As :class:`DeltaXYWHBBoxCoder`, with x2 and y2 of decoded boxes one pixel less.

    Encoding is the same: decoding what was encoded gives the box with 1 subtracted from x2 and y2. Boxes are
    clipped to the last pixel of the image.

    Args:
        target_means: As of :class:`DeltaXYWHBBoxCoder`.
        target_stds: As of :class:`DeltaXYWHBBoxCoder`.
        clip_border: As of :class:`DeltaXYWHBBoxCoder`.
        add_ctr_clamp: As of :class:`DeltaXYWHBBoxCoder`.
        ctr_clamp: As of :class:`DeltaXYWHBBoxCoder`.
        use_box_type: As of :class:`DeltaXYWHBBoxCoder`.
    """

    def decode(
        self,
        bboxes: Tensor | Any,
        pred_bboxes: Tensor,
        max_shape: MaxShape | None = None,
        wh_ratio_clip: float | None = WH_RATIO_CLIP,
    ) -> Tensor:
        """As of :class:`DeltaXYWHBBoxCoder`."""
        bboxes, pred_bboxes = boxes_to_decode(type(self).__name__, bboxes, pred_bboxes, encode_size=None)
        bboxes, pred_bboxes = full_precision(bboxes, pred_bboxes)
        x1, y1, x2, y2 = bboxes.unbind(-1)
        x, y, width, height = sizes_of_delta(
            ((x1 + x2 - 1) * 0.5, (y1 + y2 - 1) * 0.5, x2 - x1, y2 - y1),
            pred_bboxes.unflatten(-1, (-1, 4)),
            self.means,
            self.stds,
            WH_RATIO_CLIP if wh_ratio_clip is None else wh_ratio_clip,
            self.ctr_clamp if self.add_ctr_clamp else None,
        )
        half_w, half_h = (width - 1) * 0.5, (height - 1) * 0.5
        shape = max_shape if self.clip_border else None
        return stack_corners(x - half_w, y - half_h, x + half_w, y + half_h, shape, margin=1).flatten(-2)
