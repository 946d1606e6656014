"""Loss functions: a function a reader can hold against the paper, and the module a config names."""

from detkit.losses.cross_entropy_loss import CrossEntropyLoss, binary_cross_entropy, cross_entropy, mask_cross_entropy
from detkit.losses.focal_loss import FocalLoss, focal_loss_with_prob, sigmoid_focal_loss
from detkit.losses.reduction import ElementwiseLoss, weight_reduce_loss
from detkit.losses.smooth_l1_loss import L1Loss, SmoothL1Loss, smooth_l1_loss

__all__ = [
    "CrossEntropyLoss",
    "ElementwiseLoss",
    "FocalLoss",
    "L1Loss",
    "SmoothL1Loss",
    "binary_cross_entropy",
    "cross_entropy",
    "focal_loss_with_prob",
    "mask_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "weight_reduce_loss",
]
