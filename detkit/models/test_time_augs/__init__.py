"""Models that predict several views of an image and merge what they find."""

from detkit.models.test_time_augs.det_tta import DetTTAModel

__all__ = ["DetTTAModel"]
