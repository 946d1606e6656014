"""One image's annotations and predictions, as they travel from the pipeline to the metric."""

from __future__ import annotations

from mmengine.structures import BaseDataElement, InstanceData, PixelData

__all__ = ["DetDataSample"]


def _field(name: str, kind: type) -> property:
    """A typed data field, stored under ``_name`` as mmengine's element classes expect."""
    stored = f"_{name}"

    def get(self: BaseDataElement):
        return getattr(self, stored)

    def set_(self: BaseDataElement, value) -> None:
        self.set_field(value, stored, dtype=kind)

    def delete(self: BaseDataElement) -> None:
        delattr(self, stored)

    return property(get, set_, delete)


class DetDataSample(BaseDataElement):
    """Annotations and predictions of one image; image facts (``img_path``, ``img_shape`` …) are metainfo.

    Attributes:
        gt_instances: Objects to be found: ``bboxes`` (G, 4), ``labels`` (G,), ``masks`` where loaded.
        ignored_instances: Regions in which nothing is counted, same fields.
        pred_instances: Detections: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,).
        proposals: Region proposals: ``bboxes`` (P, 4), ``scores`` (P,).
        gt_sem_seg: Ground-truth class of each pixel.
        pred_sem_seg: Predicted class of each pixel.
        gt_panoptic_seg: Ground-truth segment of each pixel.
        pred_panoptic_seg: Predicted segment of each pixel.
    """

    gt_instances = _field("gt_instances", InstanceData)
    ignored_instances = _field("ignored_instances", InstanceData)
    pred_instances = _field("pred_instances", InstanceData)
    proposals = _field("proposals", InstanceData)
    gt_sem_seg = _field("gt_sem_seg", PixelData)
    pred_sem_seg = _field("pred_sem_seg", PixelData)
    gt_panoptic_seg = _field("gt_panoptic_seg", PixelData)
    pred_panoptic_seg = _field("pred_panoptic_seg", PixelData)
