"""Mask heads: where in a region its object is."""

from detkit.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead

__all__ = ["FCNMaskHead"]
