"""Assigners: which object each prior is to learn."""

from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.batched import assign_batch
from detkit.task_modules.assigners.max_iou_assigner import MaxIoUAssigner

__all__ = ["AssignResult", "BatchAssignResult", "MaxIoUAssigner", "assign_batch"]
