"""Necks: from a backbone's feature maps to those a head reads."""

from detkit.models.necks.fpn import FPN

__all__ = ["FPN"]
