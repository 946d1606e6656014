"""Backbones: from images to feature maps of several resolutions."""

from detkit.models.backbones.resnet import ResNet

__all__ = ["ResNet"]
