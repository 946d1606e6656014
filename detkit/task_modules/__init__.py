"""Task modules: what a head does to priors and objects, each part swappable by config."""

from detkit.task_modules.assigners import AssignResult, BatchAssignResult, MaxIoUAssigner, assign_batch
from detkit.task_modules.coders import DeltaXYWHBBoxCoder
from detkit.task_modules.iou_calculators import BboxOverlaps2D
from detkit.task_modules.prior_generators import AnchorGenerator
from detkit.task_modules.samplers import BatchSamplingResult, PseudoSampler, SamplingResult

__all__ = [
    "AnchorGenerator",
    "AssignResult",
    "BatchAssignResult",
    "BatchSamplingResult",
    "BboxOverlaps2D",
    "DeltaXYWHBBoxCoder",
    "MaxIoUAssigner",
    "PseudoSampler",
    "SamplingResult",
    "assign_batch",
]
