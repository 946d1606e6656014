"""Proposals of a batch as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detkit.structures.boxes import get_box_tensor

__all__ = ["Proposals", "boxes_to_rois"]


@dataclass(frozen=True)
class Proposals:
    """Boxes that may hold an object, of N images, padded to P each (0 works).

    Padding is zeros; ``valid`` tells it from proposals.

    Attributes:
        boxes: (N, P, 4).
        scores: (N, P) how sure their finder is of an object, in [0, 1]; zeros where nobody said.
        valid: (N, P) bool.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor

    @classmethod
    def of(cls, proposals: Proposals | Sequence[InstanceData]) -> Proposals:
        """Proposals as they are, or padded from instances with ``bboxes`` and, maybe, ``scores``."""
        if isinstance(proposals, Proposals):
            return proposals
        boxes = [get_box_tensor(one.bboxes).float() for one in proposals]
        scores = [one.scores.float() if "scores" in one else one.bboxes.new_zeros(len(one)) for one in proposals]
        valid = [b.new_ones(len(b), dtype=torch.bool) for b in boxes]
        padded = (pad_sequence(values, batch_first=True) for values in (boxes, scores, valid))
        return cls(*padded)

    def detached(self) -> Proposals:
        """The same without gradients."""
        return Proposals(self.boxes.detach(), self.scores.detach(), self.valid)


def boxes_to_rois(boxes: Tensor) -> Tensor:
    """RoIs (N * P, 5), the index of the image before each box, of padded boxes (N, P, 4)."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    return torch.cat([image.view(-1, 1, 1).expand(*boxes.shape[:2], 1), boxes], dim=-1).flatten(0, 1)
