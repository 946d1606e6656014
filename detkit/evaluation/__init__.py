"""Metrics: what a detector's predictions are worth."""

from detkit.evaluation.coco_metric import CocoMetric

__all__ = ["CocoMetric"]
