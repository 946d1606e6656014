"""Necks: from a backbone's feature maps to those a head reads."""

from detkit.models.necks.bfp import BFP
from detkit.models.necks.channel_mapper import ChannelMapper
from detkit.models.necks.cspnext_pafpn import CSPNeXtPAFPN
from detkit.models.necks.ct_resnet_neck import CTResNetNeck
from detkit.models.necks.dilated_encoder import DilatedEncoder
from detkit.models.necks.dyhead import DyHead
from detkit.models.necks.fpg import FPG
from detkit.models.necks.fpn import FPN
from detkit.models.necks.hrfpn import HRFPN
from detkit.models.necks.nas_fpn import NASFPN
from detkit.models.necks.pafpn import PAFPN
from detkit.models.necks.rfp import RFP
from detkit.models.necks.ssd_neck import SSDNeck
from detkit.models.necks.yolo_neck import YOLOV3Neck
from detkit.models.necks.yolox_pafpn import YOLOXPAFPN

__all__ = [
    "BFP",
    "FPG",
    "FPN",
    "HRFPN",
    "NASFPN",
    "PAFPN",
    "RFP",
    "YOLOXPAFPN",
    "CSPNeXtPAFPN",
    "CTResNetNeck",
    "ChannelMapper",
    "DilatedEncoder",
    "DyHead",
    "SSDNeck",
    "YOLOV3Neck",
]
