"""VOCMetric: average precision as the PASCAL VOC challenge defines it, https://doi.org/10.1007/s11263-009-0275-4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from terminaltables import AsciiTable

from detkit.evaluation.coco_results import to_numpy
from detkit.evaluation.recall import proposal_recall
from detkit.registry import METRICS

__all__ = ["VOCMetric", "average_precision"]

Array = NDArray[np.float64]


@METRICS.register_module()
class VOCMetric(BaseMetric):
    """Mean over classes of the average precision at one IoU threshold or several, or the recall of proposals.

    Boxes include their last pixel, as in the challenge: sides are ``x2 - x1 + 1`` long. A detection looks only at
    the object it overlaps most: the best-scored one of an object is right, others of the same object are wrong; those
    of an ignored object (``difficult``) count as neither. Ground truth is that of the samples, so LoadAnnotations
    comes after Resize in the pipeline.

    Results are ``pascal_voc/mAP`` and ``pascal_voc/AP50`` …, unrounded; for recall ``recall@100@0.5`` ….

    Args:
        iou_thrs: IoU from which a detection is right.
        metric: ``mAP`` or ``recall``; recall takes boxes of the first class as proposals.
        proposal_nums: Limits on the proposals per image, for recall.
        eval_mode: ``area`` under the curve (VOC 2010 and later) or ``11points`` of recall (VOC 2007).
        classwise: Print a table of the classes.
        collect_device: ``cpu`` or ``gpu``: how results travel between processes.
        prefix: What stands before the slash in the names of results.

    Raises:
        KeyError: An unknown metric.
        ValueError: An unknown mode, or later: a label without a class, or a sample without ground truth.
    """

    default_prefix = "pascal_voc"

    def __init__(
        self,
        iou_thrs: float | Sequence[float] = 0.5,
        metric: str | Sequence[str] = "mAP",
        proposal_nums: Sequence[int] = (100, 300, 1000),
        eval_mode: str = "11points",
        classwise: bool = True,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        names = [metric] if isinstance(metric, str) else list(metric)
        if len(names) != 1 or names[0] not in ("mAP", "recall"):
            raise KeyError(f"VOCMetric: the metric 'mAP' or 'recall' was expected, got {metric!r}")
        if eval_mode not in ("area", "11points"):
            raise ValueError(f"eval_mode: 'area' or '11points' was expected, got {eval_mode!r}")
        self.metric = names[0]
        self.iou_thrs = [float(threshold) for threshold in np.ravel(iou_thrs)]
        self.proposal_nums = tuple(proposal_nums)
        self.eval_mode = eval_mode
        self.classwise = classwise

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any] | BaseDataElement]) -> None:
        """Keep predictions and ground truth of some images, as arrays on the CPU.

        Args:
            data_batch: Not used.
            data_samples: Per image ``gt_instances`` and ``ignored_instances`` with ``bboxes`` and ``labels``,
                ``pred_instances`` with ``scores`` too; all in pixels of the original image.
        """
        for sample in data_samples:
            sample = sample.to_dict() if isinstance(sample, BaseDataElement) else sample
            if "gt_instances" not in sample or "bboxes" not in sample["gt_instances"]:
                raise ValueError(
                    f"image {sample.get('img_id')!r}: VOCMetric takes the ground truth of the samples, and there is "
                    "none; put LoadAnnotations after Resize into the pipeline"
                )
            result: dict[str, Any] = {}
            fields = (("gt", "gt_instances"), ("ignored", "ignored_instances"), ("found", "pred_instances"))
            for name, key in fields:
                given = sample.get(key) or {"bboxes": np.zeros((0, 4)), "labels": np.zeros(0, dtype=int)}
                result[name] = to_numpy(given["bboxes"]).reshape(-1, 4).astype(np.float64), to_numpy(given["labels"])
            result["scores"] = to_numpy(sample["pred_instances"]["scores"])
            self.results.append(result)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Calculate the figures from the predictions of all images."""
        if not results:
            raise ValueError("no image was evaluated: is the data set empty?")
        return self._recall(results) if self.metric == "recall" else self._precision(results)

    def _precision(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise ValueError("VOCMetric needs dataset_meta with the key 'classes', the class names in label order")
        for result in results:
            labels = result["found"][1]
            if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
                raise ValueError(
                    f"predicted labels {labels.min()} … {labels.max()}, but the data set has {len(classes)} classes: "
                    f"set num_classes of the model's head to {len(classes)}"
                )
        figures, means = {}, []
        for threshold in self.iou_thrs:
            rows = [["class", "gts", "dets", "recall", "ap"]]
            precisions = []
            for label, name in enumerate(classes):
                right, count = match([_of_class(result, label) for result in results], threshold)
                value = average_precision(right, count, self.eval_mode)
                recall = right.sum() / count if count else 0.0
                rows.append([name, str(count), str(len(right)), f"{recall:.3f}", f"{value:.3f}"])
                if count:
                    precisions.append(value)
            means.append(float(np.mean(precisions)) if precisions else 0.0)
            figures[f"AP{int(threshold * 100):02d}"] = means[-1]
            if self.classwise:
                print_log(f"IoU {threshold}\n{AsciiTable(rows).table}", logger="current")
        return {"mAP": float(np.mean(means)), **figures}

    def _recall(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        ious = []
        for result in results:
            boxes = _of_class(result, 0)
            order = np.argsort(-boxes["scores"], kind="stable")
            ious.append(pixel_ious(result["gt"][0], boxes["found"][order]))
        recalls = proposal_recall(ious, self.proposal_nums, self.iou_thrs)
        figures = {
            f"recall@{limit}@{threshold}": float(recalls[i, j])
            for i, limit in enumerate(self.proposal_nums)
            for j, threshold in enumerate(self.iou_thrs)
        }
        if len(self.iou_thrs) > 1:
            means = zip(self.proposal_nums, recalls.mean(axis=1), strict=True)
            figures.update({f"AR@{limit}": float(mean) for limit, mean in means})
        return figures


def _of_class(result: Mapping[str, Any], label: int) -> dict[str, Any]:
    boxes = {name: result[name][0][result[name][1] == label] for name in ("gt", "ignored", "found")}
    return {**boxes, "scores": result["scores"][result["found"][1] == label]}


def match(images: Sequence[Mapping[str, Any]], iou_thr: float) -> tuple[NDArray[np.bool_], int]:
    """Which detections of a class are right, best score first, and how many objects there are to be found.

    Args:
        images: Of each image ``gt`` (G, 4), ``ignored`` (I, 4), ``found`` (D, 4) and ``scores`` (D,).
        iou_thr: IoU from which a detection is right.
    """
    scores, right, counted = [], [], []
    for image in images:
        order = np.argsort(-image["scores"], kind="stable")
        truth = np.concatenate([image["gt"], image["ignored"]])
        hit = np.zeros(len(order), dtype=bool)
        counts = np.ones(len(order), dtype=bool)
        if len(truth) and len(order):
            ious = pixel_ious(image["found"][order], truth)
            best = ious.argmax(axis=1)
            close = ious.max(axis=1) >= iou_thr
            to_find = best < len(image["gt"])
            counts = ~(close & ~to_find)
            # Of the detections of an object the first is right.
            candidates = np.flatnonzero(close & to_find)
            hit[candidates[np.unique(best[candidates], return_index=True)[1]]] = True
        scores.append(image["scores"][order])
        right.append(hit)
        counted.append(counts)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    kept = np.concatenate(counted)[order]
    return np.concatenate(right)[order][kept], sum(len(image["gt"]) for image in images)


def average_precision(right: NDArray[np.bool_], count: int, mode: str = "area") -> float:
    """Average precision of detections, best score first.

    Args:
        right: (D,) which are right.
        count: Objects to be found; without any the value is 0.
        mode: ``area`` under the precision-recall curve with precision made falling, or ``11points``: the mean of the
            best precision at recalls of at least 0, 0.1, … 1.
    """
    if count == 0:
        return 0.0
    true = np.cumsum(right)
    recall, precision = true / count, true / np.arange(1, len(right) + 1)
    if mode == "11points":
        levels = np.arange(0, 1 + 1e-3, 0.1)
        return float(np.mean([precision[recall >= level].max(initial=0.0) for level in levels]))
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * falling))


def pixel_ious(first: Array, second: Array) -> Array:
    """(A, B) IoU of boxes (A, 4) and (B, 4) whose last pixel is inside."""
    low = np.maximum(first[:, None, :2], second[:, :2])
    high = np.minimum(first[:, None, 2:], second[:, 2:])
    overlap = (high - low + 1).clip(0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=-1) for boxes in (first, second)]
    return overlap / np.maximum(areas[0][:, None] + areas[1] - overlap, 1e-6)
