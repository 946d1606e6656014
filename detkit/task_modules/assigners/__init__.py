"""Assigners: which object each prior is to learn."""

from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.atss_assigner import ATSSAssigner
from detkit.task_modules.assigners.batched import assign_batch
from detkit.task_modules.assigners.dynamic_soft_label_assigner import DynamicSoftLabelAssigner
from detkit.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from detkit.task_modules.assigners.sim_ota_assigner import SimOTAAssigner
from detkit.task_modules.assigners.task_aligned_assigner import TaskAlignedAssigner

__all__ = [
    "ATSSAssigner",
    "AssignResult",
    "BatchAssignResult",
    "DynamicSoftLabelAssigner",
    "MaxIoUAssigner",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "assign_batch",
]
