"""Backbones: from images to feature maps of several resolutions."""

from detkit.models.backbones.csp_darknet import CSPDarknet
from detkit.models.backbones.cspnext import CSPNeXt
from detkit.models.backbones.darknet import Darknet
from detkit.models.backbones.detectors_resnet import DetectoRSResNet
from detkit.models.backbones.hrnet import HRNet
from detkit.models.backbones.mobilenet_v2 import MobileNetV2
from detkit.models.backbones.pvt import PyramidVisionTransformer, PyramidVisionTransformerV2
from detkit.models.backbones.regnet import RegNet
from detkit.models.backbones.res2net import Res2Net
from detkit.models.backbones.resnest import ResNeSt
from detkit.models.backbones.resnet import ResNet, ResNetV1d
from detkit.models.backbones.resnext import ResNeXt
from detkit.models.backbones.ssd_vgg import SSDVGG
from detkit.models.backbones.swin import SwinTransformer
from detkit.models.backbones.timm_backbone import TIMMBackbone
from detkit.models.backbones.trident_resnet import TridentResNet

__all__ = [
    "SSDVGG",
    "CSPDarknet",
    "CSPNeXt",
    "Darknet",
    "DetectoRSResNet",
    "HRNet",
    "MobileNetV2",
    "PyramidVisionTransformer",
    "PyramidVisionTransformerV2",
    "RegNet",
    "Res2Net",
    "ResNeSt",
    "ResNeXt",
    "ResNet",
    "ResNetV1d",
    "SwinTransformer",
    "TIMMBackbone",
    "TridentResNet",
]
