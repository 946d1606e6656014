"""Detectors: backbone, neck and heads, trained and used as one."""

from detkit.models.detectors.atss import ATSS
from detkit.models.detectors.cascade_rcnn import CascadeRCNN
from detkit.models.detectors.centernet import CenterNet
from detkit.models.detectors.fast_rcnn import FastRCNN
from detkit.models.detectors.faster_rcnn import FasterRCNN
from detkit.models.detectors.fcos import FCOS
from detkit.models.detectors.fovea import FOVEA
from detkit.models.detectors.fsaf import FSAF
from detkit.models.detectors.gfl import GFL
from detkit.models.detectors.htc import HybridTaskCascade
from detkit.models.detectors.kd_one_stage import KnowledgeDistillationSingleStageDetector
from detkit.models.detectors.mask_rcnn import MaskRCNN
from detkit.models.detectors.mask_scoring_rcnn import MaskScoringRCNN
from detkit.models.detectors.paa import PAA
from detkit.models.detectors.point_rend import PointRend
from detkit.models.detectors.reppoints_detector import RepPointsDetector
from detkit.models.detectors.retinanet import RetinaNet
from detkit.models.detectors.rpn import RPN
from detkit.models.detectors.rtmdet import RTMDet
from detkit.models.detectors.scnet import SCNet
from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.models.detectors.tood import TOOD
from detkit.models.detectors.trident_faster_rcnn import TridentFasterRCNN
from detkit.models.detectors.two_stage import TwoStageDetector
from detkit.models.detectors.vfnet import VFNet
from detkit.models.detectors.yolo import YOLOV3
from detkit.models.detectors.yolof import YOLOF
from detkit.models.detectors.yolox import YOLOX

__all__ = [
    "ATSS",
    "FCOS",
    "FOVEA",
    "FSAF",
    "GFL",
    "PAA",
    "RPN",
    "TOOD",
    "YOLOF",
    "YOLOV3",
    "YOLOX",
    "CascadeRCNN",
    "CenterNet",
    "FastRCNN",
    "FasterRCNN",
    "HybridTaskCascade",
    "KnowledgeDistillationSingleStageDetector",
    "MaskRCNN",
    "MaskScoringRCNN",
    "PointRend",
    "RTMDet",
    "RepPointsDetector",
    "RetinaNet",
    "SCNet",
    "SingleStageDetector",
    "TridentFasterRCNN",
    "TwoStageDetector",
    "VFNet",
]
