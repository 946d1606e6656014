"""Layers that all heads of a region share."""

from detkit.models.roi_heads.shared_heads.res_layer import ResLayer

__all__ = ["ResLayer"]
