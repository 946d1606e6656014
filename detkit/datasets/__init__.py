"""Annotation formats, wrappers around them, the label map, and batch samplers."""

from detkit.datasets.base import BaseDetDataset
from detkit.datasets.batch_samplers import AspectRatioBatchSampler
from detkit.datasets.coco import CocoDataset
from detkit.datasets.label_map import LabelMap
from detkit.datasets.mixing import MultiImageMixDataset
from detkit.datasets.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detkit.datasets.shapes import ShapesDataset

__all__ = [
    "AspectRatioBatchSampler",
    "BaseDetDataset",
    "CocoDataset",
    "InferenceSampler",
    "LabelMap",
    "MultiImageMixDataset",
    "RepeatFactorTrainingSampler",
    "ShapesDataset",
    "TrainingSampler",
]
