"""Dense heads: one prediction for each prior of each cell."""

from detkit.models.dense_heads.fcos_head import FCOSHead
from detkit.models.dense_heads.fovea_head import FoveaHead
from detkit.models.dense_heads.loss_normalizer import EMANormalizer
from detkit.models.dense_heads.retina_head import RetinaHead

__all__ = ["EMANormalizer", "FCOSHead", "FoveaHead", "RetinaHead"]
