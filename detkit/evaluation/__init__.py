"""Metrics: what a detector's predictions are worth."""

from detkit.evaluation.coco_metric import CocoMetric
from detkit.evaluation.dump_proposals import DumpProposals

__all__ = ["CocoMetric", "DumpProposals"]
