"""Loss functions: a function a reader can hold against the paper, and the module a config names."""

from detkit.losses.accuracy import Accuracy, accuracy
from detkit.losses.ae_loss import AssociativeEmbeddingLoss, associative_embedding_loss
from detkit.losses.balanced_l1_loss import BalancedL1Loss, balanced_l1_loss
from detkit.losses.cross_entropy_custom_loss import CrossEntropyCustomLoss
from detkit.losses.cross_entropy_loss import CrossEntropyLoss, binary_cross_entropy, cross_entropy, mask_cross_entropy
from detkit.losses.ddq_aux_loss import DDQAuxLoss
from detkit.losses.dice_loss import DiceLoss, dice_loss
from detkit.losses.distance_iou_loss import (
    CIoULoss,
    DIoULoss,
    EIoULoss,
    SIoULoss,
    ciou_loss,
    diou_loss,
    eiou_loss,
    siou_loss,
)
from detkit.losses.eqlv2_loss import EQLV2Loss
from detkit.losses.focal_custom_loss import FocalCustomLoss
from detkit.losses.focal_loss import FocalLoss, focal_loss_with_prob, sigmoid_focal_loss
from detkit.losses.gaussian_focal_loss import GaussianFocalLoss, gaussian_focal_loss
from detkit.losses.gfocal_loss import (
    DistributionFocalLoss,
    QualityFocalLoss,
    distribution_focal_loss,
    quality_focal_loss,
    quality_focal_loss_with_prob,
)
from detkit.losses.ghm_loss import GHMC, GHMR
from detkit.losses.iou_loss import BoundedIoULoss, GIoULoss, IoULoss, bounded_iou_loss, giou_loss, iou_loss
from detkit.losses.kd_loss import KnowledgeDistillationKLDivLoss, knowledge_distillation_kl_div_loss
from detkit.losses.l2_loss import L2Loss, l2_loss
from detkit.losses.margin_loss import MarginL2Loss
from detkit.losses.mse_loss import MSELoss, mse_loss
from detkit.losses.multipos_cross_entropy_loss import MultiPosCrossEntropyLoss, multi_pos_cross_entropy
from detkit.losses.pisa_loss import carl_loss, isr_p
from detkit.losses.reduction import ElementwiseLoss, reduce_loss, weight_reduce_loss, weighted_loss
from detkit.losses.seesaw_loss import SeesawLoss, seesaw_ce_loss
from detkit.losses.smooth_l1_loss import L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss
from detkit.losses.triplet_loss import TripletLoss, batch_hard_triplet_loss
from detkit.losses.varifocal_loss import VarifocalLoss, varifocal_loss

__all__ = [
    "GHMC",
    "GHMR",
    "Accuracy",
    "AssociativeEmbeddingLoss",
    "BalancedL1Loss",
    "BoundedIoULoss",
    "CIoULoss",
    "CrossEntropyCustomLoss",
    "CrossEntropyLoss",
    "DDQAuxLoss",
    "DIoULoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "EQLV2Loss",
    "ElementwiseLoss",
    "FocalCustomLoss",
    "FocalLoss",
    "GIoULoss",
    "GaussianFocalLoss",
    "IoULoss",
    "KnowledgeDistillationKLDivLoss",
    "L1Loss",
    "L2Loss",
    "MSELoss",
    "MarginL2Loss",
    "MultiPosCrossEntropyLoss",
    "QualityFocalLoss",
    "SIoULoss",
    "SeesawLoss",
    "SmoothL1Loss",
    "TripletLoss",
    "VarifocalLoss",
    "accuracy",
    "associative_embedding_loss",
    "balanced_l1_loss",
    "batch_hard_triplet_loss",
    "binary_cross_entropy",
    "bounded_iou_loss",
    "carl_loss",
    "ciou_loss",
    "cross_entropy",
    "dice_loss",
    "diou_loss",
    "distribution_focal_loss",
    "eiou_loss",
    "focal_loss_with_prob",
    "gaussian_focal_loss",
    "giou_loss",
    "iou_loss",
    "isr_p",
    "knowledge_distillation_kl_div_loss",
    "l1_loss",
    "l2_loss",
    "mask_cross_entropy",
    "mse_loss",
    "multi_pos_cross_entropy",
    "quality_focal_loss",
    "quality_focal_loss_with_prob",
    "reduce_loss",
    "seesaw_ce_loss",
    "sigmoid_focal_loss",
    "siou_loss",
    "smooth_l1_loss",
    "varifocal_loss",
    "weight_reduce_loss",
    "weighted_loss",
]
