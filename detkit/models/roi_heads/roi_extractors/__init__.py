"""RoI extractors: the features of a region."""

from detkit.models.roi_heads.roi_extractors.generic_roi_extractor import GenericRoIExtractor
from detkit.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor

__all__ = ["GenericRoIExtractor", "SingleRoIExtractor"]
