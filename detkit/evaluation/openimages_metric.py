"""OpenImagesMetric: https://storage.googleapis.com/openimages/web/evaluation.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

from detkit.evaluation.coco_results import to_numpy
from detkit.evaluation.voc_metric import average_precision
from detkit.registry import METRICS

__all__ = ["OpenImagesMetric"]

Array = NDArray[np.float64]


@METRICS.register_module()
class OpenImagesMetric(BaseMetric):
    """Mean over classes of the average precision, where boxes may stand for groups and classes for those above them.

    An object of a class is one of each class above it too. A detection of a class that nobody has looked for in the
    image does not count. Detections without an object of their own that lie within a group (intersection over their
    own area) are one with the best of them: right, in place of the group; a group that nothing lies in counts against
    precision, as in MMDetection.

    Args:
        iou_thrs: IoU from which a detection is right.
        ioa_thrs: Intersection over the detection's area from which it lies within a group; one for each of
            ``iou_thrs``.
        use_group_of: Treat groups apart; else they are objects.
        get_supercategory: Count objects and detections for the classes above theirs.
        filter_labels: Leave out detections of classes that nobody has looked for.
        collect_device: ``cpu`` or ``gpu``: how results travel between processes.
        prefix: What stands before the slash in the names of results.

    Raises:
        ValueError: Thresholds that differ in number, or later: samples without ``instances``, no ``RELATION_MATRIX``.
    """

    default_prefix = "openimages"

    def __init__(
        self,
        iou_thrs: float | Sequence[float] = 0.5,
        ioa_thrs: float | Sequence[float] | None = 0.5,
        use_group_of: bool = True,
        get_supercategory: bool = True,
        filter_labels: bool = True,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.iou_thrs = [float(threshold) for threshold in np.ravel(iou_thrs)]
        self.ioa_thrs = [0.5] * len(self.iou_thrs) if ioa_thrs is None else [float(t) for t in np.ravel(ioa_thrs)]
        if len(self.iou_thrs) != len(self.ioa_thrs):
            raise ValueError(f"ioa_thrs: {len(self.iou_thrs)} thresholds were expected, got {ioa_thrs!r}")
        if use_group_of and ioa_thrs is None:
            raise ValueError("ioa_thrs: thresholds were expected with use_group_of=True, got None")
        self.use_group_of = use_group_of
        self.get_supercategory = get_supercategory
        self.filter_labels = filter_labels

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any] | BaseDataElement]) -> None:
        """Keep predictions and ground truth of some images, with the classes above theirs.

        Args:
            data_batch: Not used.
            data_samples: Per image ``instances`` and possibly ``image_level_labels`` (``meta_keys`` of
                PackDetInputs), and ``pred_instances``; boxes in pixels of the original image.
        """
        relation = np.asarray(self._meta("RELATION_MATRIX")) > 0
        for sample in data_samples:
            sample = sample.to_dict() if isinstance(sample, BaseDataElement) else sample
            if "instances" not in sample:
                raise ValueError(
                    f"image {sample.get('img_id')!r}: no 'instances'; let the samples carry them with "
                    "PackDetInputs(meta_keys=(..., 'instances', 'image_level_labels'))"
                )
            instances = sample["instances"]
            labels = np.array([item["bbox_label"] for item in instances], dtype=np.int64)
            boxes = np.array([item["bbox"] for item in instances], dtype=np.float64).reshape(-1, 4)
            groups = np.array([item.get("is_group_of", False) for item in instances], dtype=bool)
            if self.get_supercategory:
                owner, labels = np.nonzero(relation[labels])
                boxes, groups = boxes[owner], groups[owner]
            looked_for = (
                [labels] if sample.get("image_level_labels") is None else [labels, sample["image_level_labels"]]
            )
            predicted = {key: to_numpy(sample["pred_instances"][key]) for key in ("bboxes", "scores", "labels")}
            found = self._extended(predicted, np.unique(np.concatenate(looked_for)), relation)
            self.results.append({"boxes": boxes, "labels": labels, "groups": groups, **found})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Calculate the figures from the predictions of all images."""
        if not results:
            raise ValueError("no image was evaluated: is the data set empty?")
        figures, means = {}, []
        for iou_thr, ioa_thr in zip(self.iou_thrs, self.ioa_thrs, strict=True):
            values = []
            for label in range(len(self._meta("classes"))):
                images = [_of_class(result, label) for result in results]
                count = sum(len(image["boxes"]) for image in images)
                if count:
                    judged = [self._judge(image, iou_thr, ioa_thr) for image in images]
                    scores, right = (np.concatenate(parts) for parts in zip(*judged, strict=True))
                    values.append(average_precision(right[np.argsort(-scores, kind="stable")], count))
            means.append(float(np.mean(values)) if values else 0.0)
            figures[f"AP{int(iou_thr * 100):02d}"] = means[-1]
        figures["mAP"] = float(np.mean(means))
        print_log("  ".join(f"{name} {value:.3f}" for name, value in figures.items()), logger="current")
        return figures

    def _extended(self, found: Mapping[str, Any], looked_for: NDArray[Any], relation: NDArray[np.bool_]) -> dict:
        """Detections for their own class and those above it, as far as somebody has looked for them."""
        labels = found["labels"].astype(np.int64)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(relation):
            raise ValueError(
                f"predicted labels {labels.min()} … {labels.max()}, but the data set has {len(relation)} classes: set "
                f"num_classes of the model's head to {len(relation)}"
            )
        allowed = np.isin(np.arange(len(relation)), looked_for)
        wanted = relation[labels] & allowed if self.get_supercategory else np.zeros((len(labels), len(relation)), bool)
        own = np.zeros_like(wanted)
        own[np.arange(len(labels)), labels] = True
        wanted = wanted | (own & allowed) if self.filter_labels else wanted | own
        owner, classes = np.nonzero(wanted)
        boxes = found["bboxes"].reshape(-1, 4).astype(np.float64)[owner]
        return {"found": boxes, "scores": found["scores"][owner], "found_labels": classes}

    def _judge(self, image: Mapping[str, Any], iou_thr: float, ioa_thr: float) -> tuple[Array, NDArray[np.bool_]]:
        """Scores of what counts in an image, and whether it is right."""
        order = np.argsort(-image["scores"], kind="stable")
        found, scores = image["found"][order], image["scores"][order]
        groups = image["groups"] if self.use_group_of else np.zeros(len(image["boxes"]), dtype=bool)
        single, group = image["boxes"][~groups], image["boxes"][groups]
        right = np.zeros(len(found), dtype=bool)
        if len(single) and len(found):
            overlap, own, areas = _overlaps(found, single)
            ious = overlap / np.maximum(own + areas - overlap, 1e-6)
            best = ious.argmax(axis=1)
            candidates = np.flatnonzero(ious.max(axis=1) >= iou_thr)
            # Of the detections of an object the first is right.
            right[candidates[np.unique(best[candidates], return_index=True)[1]]] = True
        if not len(group):
            return scores, right
        group_scores, group_right = np.zeros(len(group)), np.zeros(len(group), dtype=bool)
        within = np.zeros(len(found), dtype=bool)
        if len(found):
            overlap, own, _ = _overlaps(found, group)
            ioas = overlap / np.maximum(own, 1e-6)
            within = (ioas.max(axis=1) >= ioa_thr) & ~right
            np.maximum.at(group_scores, ioas.argmax(axis=1)[within], scores[within])
            group_right[ioas.argmax(axis=1)[within]] = True
        return np.concatenate([scores[~within], group_scores]), np.concatenate([right[~within], group_right])

    def _meta(self, key: str) -> Any:
        value = (self.dataset_meta or {}).get(key)
        if value is None:
            raise ValueError(f"OpenImagesMetric needs dataset_meta with the key {key!r}, as OpenImagesDataset gives it")
        return value


def _of_class(result: Mapping[str, Any], label: int) -> dict[str, Any]:
    mine, found = result["labels"] == label, result["found_labels"] == label
    return {
        "boxes": result["boxes"][mine],
        "groups": result["groups"][mine],
        "found": result["found"][found],
        "scores": result["scores"][found],
    }


def _overlaps(first: Array, second: Array) -> tuple[Array, Array, Array]:
    """(A, B) area in common, (A, 1) and (1, B) areas of boxes (A, 4) and (B, 4)."""
    low = np.maximum(first[:, None, :2], second[:, :2])
    high = np.minimum(first[:, None, 2:], second[:, 2:])
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (first, second)]
    return (high - low).clip(0).prod(axis=-1), areas[0][:, None], areas[1][None]
