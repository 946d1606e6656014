"""CocoMetric: average precision and recall as the COCO benchmark defines them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from pycocotools import mask as rle
from pycocotools.coco import COCO
from terminaltables import AsciiTable

from detkit.evaluation.coco_eval import NOT_EVALUATED, CocoCurves, evaluate, index
from detkit.evaluation.coco_results import (
    carried_content,
    carried_instances,
    check_mask_sizes,
    list_detections,
    read_annotations,
    to_numpy,
    to_run_lengths,
    to_xywh,
    write_detections,
)
from detkit.evaluation.recall import proposal_recall
from detkit.registry import METRICS, nearest

__all__ = ["CocoMetric"]

_PRECISION_ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_RECALL_ITEMS = ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")
_MAP_MAX_DETS = 100  # COCO's main figure looks at the best 100 detections of an image


@METRICS.register_module()
class CocoMetric(BaseMetric):
    """Average precision and recall of boxes, masks or proposals, the numbers of pycocotools.

    Results are ``coco/bbox_mAP``, ``coco/bbox_mAP_50`` … (unrounded), with ``classwise`` also
    ``coco/<class>_precision``. A figure without ground truth is -1, that of a class not a number. Classes
    are found in the annotation file by their name, whatever the order and the ids it gives them. Every image of
    the file counts: objects in images that were not evaluated are missed.

    Args:
        ann_file: COCO annotation file; None takes that of the data set, or, where it has none, what the samples
            carry as ``instances`` (``meta_keys`` of PackDetInputs).
        metric: One or more of ``bbox``, ``segm``, ``proposal`` (boxes without regard to class) and
            ``proposal_fast`` (average recall only, without regard to size).
        classwise: Whether to report each class, in the results and as a table.
        proposal_nums: Three limits on the detections per image. The names ``AR@100``, ``AR@300``, ``AR@1000``
            stand for the first, second and third, whatever they are; of one limit all three.
        iou_thrs: IoU thresholds, 0.50:0.05:0.95 if None. With thresholds given, ``mAP_50`` and ``mAP_75`` are -1,
            as in MMDetection: ask for ``mAP`` at ``iou_thrs=0.5``.
        metric_items: Figures to report, all of precision (of recall, for ``proposal``) if None.
        format_only: Write the detections to files and calculate nothing.
        outfile_prefix: Detections are written to ``<prefix>.bbox.json``, ``.segm.json`` and ``.proposal.json`` in
            COCO's results format; nothing is written if None.
        backend_args: How mmengine reads ``ann_file``, for files that are not local.
        collect_device: ``cpu`` or ``gpu``: how results travel between processes.
        prefix: What stands before the slash in the names of results.
        sort_categories: Kept for MMDetection's configs; classes are found by name, so the order of categories in
            the file has no effect.
        use_mp_eval: Kept for MMDetection's configs; many categories take no longer than their objects do.

    Raises:
        KeyError: An unknown metric or metric item.
        ValueError: Another argument does not fit; later: a class that the file lacks, a label without a class, an
            image that the file lacks or that is evaluated twice.
    """

    default_prefix = "coco"
    metric_names: tuple[str, ...] = ("bbox", "segm", "proposal", "proposal_fast")
    item_names: tuple[str, ...] = _PRECISION_ITEMS + _RECALL_ITEMS

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = "bbox",
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        sort_categories: bool = False,
        use_mp_eval: bool = False,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.metrics = [metric] if isinstance(metric, str) else list(metric)
        self.metric_items = list(metric_items) if metric_items is not None else None
        self._check_names(self.metrics, self.metric_names, "metric")
        self._check_names(self.metric_items or (), self.item_names, "metric item")
        if format_only and outfile_prefix is None:
            raise ValueError("format_only=True writes the detections: give outfile_prefix, where to")
        if set(self.metrics) != {"proposal_fast"} and len(proposal_nums) not in (1, 3):
            raise ValueError(f"proposal_nums must be one number or three, got {proposal_nums}")
        self.ann_file = ann_file
        self.classwise = classwise
        self.proposal_nums = sorted(proposal_nums)
        self.has_own_thresholds = iou_thrs is not None
        self.iou_thrs = np.linspace(0.5, 0.95, 10).tolist() if iou_thrs is None else np.ravel(iou_thrs).tolist()
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.backend_args = backend_args
        self.sort_categories = sort_categories
        self._truth: COCO | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any] | BaseDataElement]) -> None:
        """Keep the predictions of some images, as plain values on the CPU.

        Args:
            data_batch: Not used.
            data_samples: Per image ``img_id``, ``ori_shape`` and ``pred_instances``: ``bboxes`` (D, 4) in
                pixels of the original image, ``scores`` (D,), ``labels`` (D,), for ``segm`` also ``masks``
                (D, H, W) or run-length dicts, and possibly ``mask_scores`` (D,).
        """
        for sample in data_samples:
            sample = sample.to_dict() if isinstance(sample, BaseDataElement) else sample
            predicted = sample["pred_instances"]
            result: dict[str, Any] = {key: to_numpy(predicted[key]) for key in ("bboxes", "scores", "labels")}
            result["img_id"] = sample["img_id"]
            result["ori_shape"] = tuple(sample["ori_shape"])
            if not np.isfinite(result["scores"]).all() or not np.isfinite(result["bboxes"]).all():
                raise ValueError(f"image {result['img_id']!r}: a predicted box or score is not a finite number")
            if "masks" in predicted:
                result["masks"] = to_run_lengths(predicted["masks"])
                result["mask_scores"] = to_numpy(predicted.get("mask_scores", predicted["scores"]))
                check_mask_sizes(result)
            if self._annotation_file() is None:
                result["instances"] = carried_instances(sample)
            self.results.append(result)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Calculate every figure asked for from the predictions of all images."""
        truth = self._ground_truth(results)
        _check_images(results, truth, self._annotation_file())
        category_ids = self._category_ids(truth)
        figures: dict[str, float] = {}
        for metric in self.metrics:
            detections = list_detections(results, "segm" if metric == "segm" else "bbox", category_ids)
            kind = "proposal" if metric.startswith("proposal") else metric
            if metric == "segm" and not self.format_only:
                _check_truth_masks(truth, category_ids, self._annotation_file())
            if self.outfile_prefix is not None:
                write_detections(detections, f"{self.outfile_prefix}.{kind}.json")
            if self.format_only:
                continue
            if not detections:
                message = f"{metric}: the model detected nothing in {len(results)} images"
                print_log(message, logger="current", level=logging.WARNING)
            if metric == "proposal_fast":
                figures.update(self._fast_recall(results, truth))
                continue
            curves = self._curves(truth, detections, metric, category_ids)
            figures.update(self._figures(curves, metric, truth))
            if self.classwise and metric != "proposal":
                figures.update(self._class_figures(curves, metric, category_ids))
        return figures

    def _curves(
        self, truth: COCO, detections: Sequence[Mapping[str, Any]], metric: str, category_ids: Sequence[int]
    ) -> CocoCurves:
        """Precision and recall of the detections."""
        return evaluate(
            truth,
            detections,
            iou_type="segm" if metric == "segm" else "bbox",
            category_ids=category_ids,
            iou_thrs=self.iou_thrs,
            max_dets=self.proposal_nums,
            use_categories=metric != "proposal",
        )

    def _figures(self, curves: CocoCurves, metric: str, truth: COCO) -> dict[str, float]:
        """The items asked for, by name."""
        limits = list(curves.max_dets)
        fixed_thr = NOT_EVALUATED if self.has_own_thresholds else None
        values = {
            "mAP": curves.average_precision(max_dets=_MAP_MAX_DETS if _MAP_MAX_DETS in limits else None),
            "mAP_50": fixed_thr or curves.average_precision(iou_thr=0.5),
            "mAP_75": fixed_thr or curves.average_precision(iou_thr=0.75),
            **{f"mAP_{area}": curves.average_precision(area) for area in "sml"},
            **dict(zip(_RECALL_ITEMS[:3], (curves.average_recall(max_dets=n) for n in limits * 3), strict=False)),
            **{f"AR_{area}@1000": curves.average_recall(area) for area in "sml"},
        }
        if metric == "proposal":
            figures = {name: values[name] for name in self.metric_items or _RECALL_ITEMS}
        else:
            figures = {f"{metric}_{name}": values[name] for name in self.metric_items or _PRECISION_ITEMS}
        print_log("  ".join(f"{name} {value:.3f}" for name, value in figures.items()), logger="current")
        return figures

    def _class_figures(self, curves: CocoCurves, metric: str, category_ids: Sequence[int]) -> dict[str, float]:
        """Average precision of each class, and a table of it."""
        rows, figures = [["category", *_PRECISION_ITEMS]], {}
        for name, category in zip(self._classes(), category_ids, strict=True):
            values = [
                curves.average_precision(category=category),
                curves.average_precision(iou_thr=0.5, category=category),
                curves.average_precision(iou_thr=0.75, category=category),
                *(curves.average_precision(area, category=category) for area in "sml"),
            ]
            values = [float("nan") if value == NOT_EVALUATED else value for value in values]
            rows.append([name, *(f"{value:.3f}" for value in values)])
            figures[f"{name}_precision"] = values[0]
            if len(self.metrics) > 1:  # the short name holds the last metric only
                figures[f"{metric}_{name}_precision"] = values[0]
        print_log(f"{metric} per class\n{AsciiTable(rows).table}", logger="current")
        return figures

    def _fast_recall(self, results: Sequence[Mapping[str, Any]], truth: COCO) -> dict[str, float]:
        ious = []
        for result in results:
            boxes = [a["bbox"] for a in truth.imgToAnns[result["img_id"]] if not (a["iscrowd"] or a.get("ignore"))]
            order = np.argsort(-result["scores"], kind="stable")[: self.proposal_nums[-1]]
            proposals = to_xywh(result["bboxes"][order])
            shape = (len(boxes), len(proposals))
            not_crowd = [0] * len(boxes)
            ious.append(rle.iou(proposals, np.array(boxes, float), not_crowd).T if all(shape) else np.zeros(shape))
        recalls = proposal_recall(ious, self.proposal_nums, self.iou_thrs).mean(axis=1)
        figures = {f"AR@{limit}": float(value) for limit, value in zip(self.proposal_nums, recalls, strict=True)}
        print_log("  ".join(f"{name} {value:.3f}" for name, value in figures.items()), logger="current")
        return figures

    def _check_names(self, given: Sequence[str], known: Sequence[str], what: str) -> None:
        for name in given:
            if name not in known:
                close = " or ".join(map(repr, nearest(name, known)))
                kind = type(self).__name__
                raise KeyError(f"{kind} has no {what} {name!r}; did you mean {close}? Known: {', '.join(known)}")

    def _classes(self) -> Sequence[str]:
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise ValueError("CocoMetric needs dataset_meta with the key 'classes', the class names in label order")
        return classes

    def _annotation_file(self) -> str | None:
        return self.ann_file or (self.dataset_meta or {}).get("ann_file")

    def _ground_truth(self, results: Sequence[Mapping[str, Any]]) -> COCO:
        file = self._annotation_file()
        if file is None:
            return index(carried_content(results, self._classes()))
        if self._truth is None:
            self._truth = index(read_annotations(file, self.backend_args))
        return self._truth

    def _category_ids(self, truth: COCO) -> list[int]:
        """The id, in ``truth``, of each class, in label order."""
        by_name: dict[str, list[int]] = {}
        for category in truth.dataset["categories"]:
            by_name.setdefault(category["name"], []).append(category["id"])
        meta_ids = (self.dataset_meta or {}).get("category_ids") or [None] * len(self._classes())
        chosen = []
        for name, meta_id in zip(self._classes(), meta_ids, strict=True):
            ids = by_name.get(name, [])
            if not ids:
                close = " or ".join(map(repr, nearest(name, by_name, count=3))) or "nothing"
                raise ValueError(f"{self._annotation_file()}: has no category {name!r}; did you mean {close}?")
            if len(ids) > 1 and meta_id not in ids:
                raise ValueError(f"{self._annotation_file()}: the categories {ids} are all named {name!r}")
            chosen.append(meta_id if len(ids) > 1 else ids[0])
        return chosen


def _check_truth_masks(truth: COCO, category_ids: Sequence[int], file: str | None) -> None:
    for annotation in truth.dataset["annotations"]:
        if annotation["category_id"] in category_ids and not annotation.get("segmentation"):
            raise ValueError(
                f"{file}: annotation {annotation['id']} (image {annotation['image_id']}) has no segmentation, but the "
                "metric 'segm' compares masks; use metric='bbox'"
            )


def _check_images(results: Sequence[Mapping[str, Any]], truth: COCO, file: str | None) -> None:
    """Each evaluated image must be there once and in the ground truth; say so if that has more."""
    if not results:
        raise ValueError("no image was evaluated: is the data set empty?")
    counts = Counter(result["img_id"] for result in results)
    repeated = next((image_id for image_id, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"image {repeated!r} was evaluated twice: its detections would count double")
    unknown = next((image_id for image_id in counts if image_id not in truth.imgs), None)
    if unknown is not None:
        raise ValueError(f"{file}: has no image with the id {unknown!r}; does ann_file belong to this data set?")
    if len(counts) < len(truth.imgs):
        message = f"{file}: {len(counts)} of {len(truth.imgs)} images were evaluated; objects in the rest are missed"
        print_log(message, logger="current", level=logging.WARNING)
