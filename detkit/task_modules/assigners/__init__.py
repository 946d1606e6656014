"""Assigners: which object each prior is to learn."""

from detkit.task_modules.assigners.approx_max_iou_assigner import ApproxMaxIoUAssigner
from detkit.task_modules.assigners.assign_result import AssignResult, BatchAssignResult
from detkit.task_modules.assigners.atss_assigner import ATSSAssigner
from detkit.task_modules.assigners.batched import assign_batch, needed_inputs
from detkit.task_modules.assigners.center_region_assigner import CenterRegionAssigner
from detkit.task_modules.assigners.dynamic_soft_label_assigner import DynamicSoftLabelAssigner
from detkit.task_modules.assigners.fcos_assigner import FCOSAssigner
from detkit.task_modules.assigners.fovea_assigner import FoveaAssigner
from detkit.task_modules.assigners.grid_assigner import GridAssigner
from detkit.task_modules.assigners.hungarian_assigner import HungarianAssigner
from detkit.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from detkit.task_modules.assigners.multi_instance_assigner import MultiInstanceAssigner
from detkit.task_modules.assigners.point_assigner import PointAssigner
from detkit.task_modules.assigners.region_assigner import RegionAssigner
from detkit.task_modules.assigners.sim_ota_assigner import SimOTAAssigner
from detkit.task_modules.assigners.task_aligned_assigner import TaskAlignedAssigner
from detkit.task_modules.assigners.topk_hungarian_assigner import TopkHungarianAssigner
from detkit.task_modules.assigners.uniform_assigner import UniformAssigner

__all__ = [
    "ATSSAssigner",
    "ApproxMaxIoUAssigner",
    "AssignResult",
    "BatchAssignResult",
    "CenterRegionAssigner",
    "DynamicSoftLabelAssigner",
    "FCOSAssigner",
    "FoveaAssigner",
    "GridAssigner",
    "HungarianAssigner",
    "MaxIoUAssigner",
    "MultiInstanceAssigner",
    "PointAssigner",
    "RegionAssigner",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "TopkHungarianAssigner",
    "UniformAssigner",
    "assign_batch",
    "needed_inputs",
]
