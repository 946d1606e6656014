"""What sampled regions learn: their class, and the box of their object."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.task_modules.coders import encode_finite

__all__ = ["BoxTargets", "box_targets", "encoded_objects", "label_targets", "of_own_class"]


class BoxTargets(NamedTuple):
    """Targets of all R sampled regions of all N images.

    Attributes:
        labels: (N * R,) int64, the number of classes for background and padding.
        label_weights: (N * R,), 0 in padding.
        bbox_targets: (N * R, 4), encoded unless boxes are compared; zeros where there is no object.
        bbox_weights: (N * R, 4), 1 where there is an object.
    """

    labels: Tensor
    label_weights: Tensor
    bbox_targets: Tensor
    bbox_weights: Tensor


def label_targets(sampled: SampledRoIs, pos_weight: float = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, their weights and which are of an object, each (N * R,), of sampled regions.

    Args:
        sampled: Of N images.
        pos_weight: Label weight of a positive; 1 where <= 0.
    """
    positive = sampled.positive.flatten()
    weights = sampled.valid.flatten().float()
    if sampled.label_weights is not None:
        weights = weights * sampled.label_weights.flatten()
    if pos_weight > 0:
        weights = torch.where(positive, pos_weight, weights)
    return sampled.labels.flatten(), weights, positive


def encoded_objects(sampled: SampledRoIs, coder: Any) -> Any:
    """What ``coder`` makes of the object of each of the N * R regions; where there is none, something finite."""
    boxes, own = sampled.gt_boxes.flatten(0, 1), sampled.boxes.flatten(0, 1)
    of_object = sampled.positive.flatten().unsqueeze(1)
    # Only regions with an object have a size for sure; the others are not encoded as themselves.
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0]).to(boxes.device, non_blocking=True)
    return encode_finite(coder, torch.where(of_object, own, unit), torch.where(of_object, boxes, unit))


def box_targets(sampled: SampledRoIs, coder: Any, pos_weight: float = -1) -> BoxTargets:
    """Targets of sampled regions.

    Args:
        sampled: Of N images.
        coder: Encodes the boxes; None leaves them as they are.
        pos_weight: Label weight of a positive; 1 where <= 0.
    """
    labels, weights, positive = label_targets(sampled, pos_weight)
    boxes = sampled.gt_boxes.flatten(0, 1) if coder is None else encoded_objects(sampled, coder)
    of_object = positive.unsqueeze(1)
    return BoxTargets(
        labels=labels,
        label_weights=weights,
        bbox_targets=torch.where(of_object, boxes, 0.0),
        bbox_weights=of_object.expand(-1, boxes.shape[1]).float(),
    )


def of_own_class(predictions: Tensor, labels: Tensor, size: int) -> Tensor:
    """Encoded boxes (R, size) of the label of each of the R regions.

    Args:
        predictions: (R, size) for all classes alike, or (R, C * size) for each class.
        labels: (R,) int64; one outside of [0, C) takes any.
        size: Numbers that encode a box.
    """
    if predictions.shape[1] == size:
        return predictions
    classes = predictions.unflatten(1, (-1, size))
    own = labels.clamp(0, classes.shape[1] - 1).view(-1, 1, 1).expand(-1, 1, size)
    return classes.gather(1, own).squeeze(1)
