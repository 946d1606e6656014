"""Annotation formats, wrappers around them, the label map, and batch samplers."""

from detkit.datasets.base import BaseDetDataset
from detkit.datasets.batch_samplers import AspectRatioBatchSampler
from detkit.datasets.coco import CocoDataset
from detkit.datasets.coco_variants import (
    CityscapesDataset,
    DeepFashionDataset,
    LVISV05Dataset,
    LVISV1Dataset,
    Objects365V1Dataset,
    Objects365V2Dataset,
    V3DetDataset,
    iSAIDDataset,
)
from detkit.datasets.concat import ConcatDataset
from detkit.datasets.label_map import LabelMap
from detkit.datasets.mixing import MultiImageMixDataset
from detkit.datasets.openimages import OpenImagesChallengeDataset, OpenImagesDataset
from detkit.datasets.samplers import ClassAwareSampler, InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detkit.datasets.shapes import ShapesDataset
from detkit.datasets.xml_files import VOCDataset, WIDERFaceDataset, XMLDataset

__all__ = [
    "AspectRatioBatchSampler",
    "BaseDetDataset",
    "CityscapesDataset",
    "ClassAwareSampler",
    "CocoDataset",
    "ConcatDataset",
    "DeepFashionDataset",
    "InferenceSampler",
    "LVISV05Dataset",
    "LVISV1Dataset",
    "LabelMap",
    "MultiImageMixDataset",
    "Objects365V1Dataset",
    "Objects365V2Dataset",
    "OpenImagesChallengeDataset",
    "OpenImagesDataset",
    "RepeatFactorTrainingSampler",
    "ShapesDataset",
    "TrainingSampler",
    "V3DetDataset",
    "VOCDataset",
    "WIDERFaceDataset",
    "XMLDataset",
    "iSAIDDataset",
]
