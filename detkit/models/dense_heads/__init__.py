"""Dense heads: one prediction for each prior of each cell."""

from detkit.models.dense_heads.atss_head import ATSSHead
from detkit.models.dense_heads.centernet_head import CenterNetHead
from detkit.models.dense_heads.centernet_update_head import CenterNetUpdateHead
from detkit.models.dense_heads.deformable_detr_head import DeformableDETRHead
from detkit.models.dense_heads.detr_head import DETRHead
from detkit.models.dense_heads.dino_head import DINOHead
from detkit.models.dense_heads.fcos_head import FCOSHead
from detkit.models.dense_heads.fovea_head import FoveaHead
from detkit.models.dense_heads.free_anchor_retina_head import FreeAnchorRetinaHead
from detkit.models.dense_heads.fsaf_head import FSAFHead
from detkit.models.dense_heads.ga_retina_head import GARetinaHead
from detkit.models.dense_heads.ga_rpn_head import GARPNHead
from detkit.models.dense_heads.gfl_head import GFLHead
from detkit.models.dense_heads.ld_head import LDHead
from detkit.models.dense_heads.losses.loss_normalizer import EMANormalizer
from detkit.models.dense_heads.paa_head import PAAHead
from detkit.models.dense_heads.reppoints_head import RepPointsHead
from detkit.models.dense_heads.retina_head import RetinaHead
from detkit.models.dense_heads.retina_sepbn_head import RetinaSepBNHead
from detkit.models.dense_heads.rpn_head import RPNHead
from detkit.models.dense_heads.rtmdet_head import RTMDetHead, RTMDetSepBNHead
from detkit.models.dense_heads.sabl_retina_head import SABLRetinaHead
from detkit.models.dense_heads.ssd_head import SSDHead
from detkit.models.dense_heads.tood_head import TOODHead
from detkit.models.dense_heads.vfnet_head import VFNetHead
from detkit.models.dense_heads.yolo_head import YOLOV3Head
from detkit.models.dense_heads.yolof_head import YOLOFHead
from detkit.models.dense_heads.yolox_head import YOLOXHead

__all__ = [
    "ATSSHead",
    "CenterNetHead",
    "CenterNetUpdateHead",
    "DETRHead",
    "DINOHead",
    "DeformableDETRHead",
    "EMANormalizer",
    "FCOSHead",
    "FSAFHead",
    "FoveaHead",
    "FreeAnchorRetinaHead",
    "GARPNHead",
    "GARetinaHead",
    "GFLHead",
    "LDHead",
    "PAAHead",
    "RPNHead",
    "RTMDetHead",
    "RTMDetSepBNHead",
    "RepPointsHead",
    "RetinaHead",
    "RetinaSepBNHead",
    "SABLRetinaHead",
    "SSDHead",
    "TOODHead",
    "VFNetHead",
    "YOLOFHead",
    "YOLOV3Head",
    "YOLOXHead",
]
