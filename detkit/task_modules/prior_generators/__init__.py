"""Prior generators: the boxes or points that predictions start from."""

from detkit.task_modules.prior_generators.anchor_generator import AnchorGenerator, LegacyAnchorGenerator
from detkit.task_modules.prior_generators.grid_anchors import GridAnchors
from detkit.task_modules.prior_generators.point_generator import MlvlPointGenerator, PointGenerator
from detkit.task_modules.prior_generators.regions import anchor_inside_flags, calc_region
from detkit.task_modules.prior_generators.ssd_anchor_generator import LegacySSDAnchorGenerator, SSDAnchorGenerator
from detkit.task_modules.prior_generators.torchvision_priors import (
    TorchvisionAnchorGenerator,
    TorchvisionPointGenerator,
)
from detkit.task_modules.prior_generators.yolo_anchor_generator import YOLOAnchorGenerator

__all__ = [
    "AnchorGenerator",
    "GridAnchors",
    "LegacyAnchorGenerator",
    "LegacySSDAnchorGenerator",
    "MlvlPointGenerator",
    "PointGenerator",
    "SSDAnchorGenerator",
    "TorchvisionAnchorGenerator",
    "TorchvisionPointGenerator",
    "YOLOAnchorGenerator",
    "anchor_inside_flags",
    "calc_region",
]
