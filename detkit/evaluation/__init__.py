"""Metrics: what a detector's predictions are worth."""

from detkit.evaluation.cityscapes_metric import CityScapesMetric
from detkit.evaluation.coco_metric import CocoMetric
from detkit.evaluation.dump_proposals import DumpProposals
from detkit.evaluation.lvis_metric import LVISMetric
from detkit.evaluation.openimages_metric import OpenImagesMetric
from detkit.evaluation.voc_metric import VOCMetric

__all__ = ["CityScapesMetric", "CocoMetric", "DumpProposals", "LVISMetric", "OpenImagesMetric", "VOCMetric"]
