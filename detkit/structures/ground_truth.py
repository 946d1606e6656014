"""The annotations of a batch as padded tensors, built once per training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detkit.structures.boxes import HasTensor, get_box_tensor
from detkit.structures.sample import DetDataSample

__all__ = ["GroundTruth"]


@dataclass(frozen=True)
class GroundTruth:
    """Objects of N images, padded to the largest count G of the batch (0 works).

    Padding is zeros; ``valid`` tells it from objects. Shapes follow from the batch alone, so building
    and using it needs no value on the host.

    Attributes:
        boxes: (N, G, 4).
        labels: (N, G) int64.
        valid: (N, G) bool.
        ignored_boxes: (N, I, 4) regions in which nothing is counted.
        ignored_valid: (N, I) bool.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ignored_boxes: Tensor
    ignored_valid: Tensor

    @classmethod
    def from_samples(cls, samples: Sequence[DetDataSample]) -> GroundTruth:
        """Pad the annotations of data samples."""
        return cls.from_instances(
            [sample.gt_instances for sample in samples],
            [sample.ignored_instances if "ignored_instances" in sample else None for sample in samples],
        )

    @classmethod
    def from_instances(
        cls, instances: Sequence[InstanceData], ignored: Sequence[InstanceData | None] | None = None
    ) -> GroundTruth:
        """Pad instances with fields ``bboxes`` and ``labels``; of ``ignored`` only the boxes count."""
        boxes, valid = _pad_boxes([item.bboxes for item in instances])
        # Labels of an image without objects may come as floats.
        labels = pad_sequence([item.labels.long() for item in instances], batch_first=True)
        nothing = boxes.new_zeros(0, 4)
        regions = [nothing if item is None else item.bboxes for item in ignored or [None] * len(instances)]
        return cls(boxes, labels, valid, *_pad_boxes(regions))

    def matched(self, gt_inds: Tensor, fill: Tensor) -> tuple[Tensor, Tensor]:
        """Box and label of the object each prior is assigned to.

        Args:
            gt_inds: (N, A) int64, ``i + 1`` for the i-th object, else 0 or -1.
            fill: (A, 4) or (N, A, 4) box of a prior without object.

        Returns:
            Boxes (N, A, 4) and labels (N, A); labels of priors without object are meaningless.
        """
        positive = gt_inds > 0
        if self.boxes.shape[1] == 0:
            return fill.expand(*gt_inds.shape, 4), torch.zeros_like(gt_inds)
        index = (gt_inds - 1).clamp(min=0)
        boxes = self.boxes.gather(1, index.unsqueeze(-1).expand(*index.shape, 4))
        return torch.where(positive.unsqueeze(-1), boxes, fill), self.labels.gather(1, index)

    def labels_at(self, gt_inds: Tensor) -> Tensor:
        """Label (N, A) of the object each prior is assigned to, -1 where there is none; ``gt_inds`` as above."""
        if self.boxes.shape[1] == 0:
            return torch.full_like(gt_inds, -1)
        labels = self.labels.gather(1, (gt_inds - 1).clamp(min=0))
        return torch.where(gt_inds > 0, labels, -1)


def _pad_boxes(boxes: Sequence[Tensor | HasTensor]) -> tuple[Tensor, Tensor]:
    tensors = [get_box_tensor(b) for b in boxes]
    valid = pad_sequence([b.new_ones(len(b), dtype=torch.bool) for b in tensors], batch_first=True)
    return pad_sequence([b.float() for b in tensors], batch_first=True), valid
