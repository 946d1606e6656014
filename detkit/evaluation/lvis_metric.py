"""LVISMetric: average precision where only some categories of an image are annotated, https://arxiv.org/abs/1908.03195.

The rules are those of LVIS's own evaluation; what it has in common with COCO's is pycocotools'.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from pycocotools.coco import COCO

from detkit.evaluation.coco_eval import NOT_EVALUATED, CocoCurves, evaluate
from detkit.evaluation.coco_metric import CocoMetric
from detkit.registry import METRICS

__all__ = ["LVISMetric", "evaluate_federated"]

_MAX_DETS = 300  # the best so many detections of an image are judged, whatever their categories
_GROUPS = {"APr": "r", "APc": "c", "APf": "f"}  # rare, common, frequent, by the file's 'frequency'
_PRECISION_ITEMS = ("AP", "AP50", "AP75", "APs", "APm", "APl", *_GROUPS)
_RECALL_ITEMS = ("AR@300", "ARs@300", "ARm@300", "ARl@300")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


@METRICS.register_module()
class LVISMetric(CocoMetric):
    """Average precision of LVIS: ``lvis/bbox_AP``, ``bbox_APr`` (rare classes), ``APc`` (common), ``APf`` (frequent) ….

    A detection counts only where its category was looked for: where the image has objects of it, or lists it under
    ``neg_category_ids``. Where the annotation of a category is not exhaustive, a detection without an object is
    neither right nor wrong.

    Args:
        ann_file: As CocoMetric's, here and below; a LVIS file.
        metric: One or more of ``bbox``, ``segm`` and ``proposal_fast``.
        classwise: The same.
        proposal_nums: Limits on the proposals per image, for ``proposal_fast``.
        iou_thrs: The same.
        metric_items: Figures to report: AP, AP50, AP75, APs, APm, APl, APr, APc, APf if None; also AR@300, ARs@300 ….
        format_only: The same.
        outfile_prefix: The same.
        backend_args: The same.
        collect_device: The same.
        prefix: The same.

    Raises:
        KeyError: As CocoMetric.
        ValueError: As CocoMetric, or a file without LVIS's lists of categories.
    """

    default_prefix = "lvis"
    metric_names = ("bbox", "segm", "proposal_fast")
    item_names = _PRECISION_ITEMS + _RECALL_ITEMS

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
        collect_device: str = "cpu",
        prefix: str | None = None,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            ann_file=ann_file,
            metric=metric,
            classwise=classwise,
            proposal_nums=proposal_nums,
            iou_thrs=iou_thrs,
            metric_items=metric_items,
            format_only=format_only,
            outfile_prefix=outfile_prefix,
            backend_args=backend_args,
            collect_device=collect_device,
            prefix=prefix,
        )

    def _curves(
        self, truth: COCO, detections: Sequence[Mapping[str, Any]], metric: str, category_ids: Sequence[int]
    ) -> CocoCurves:
        for image in truth.dataset["images"]:
            lacking = [key for key in _FEDERATED if key not in image]
            if lacking:
                raise ValueError(
                    f"{self._annotation_file()}: image {image['id']!r} has no {' and no '.join(lacking)}; LVISMetric "
                    "needs a LVIS file, for others there is CocoMetric"
                )
        return evaluate_federated(truth, detections, metric, category_ids, self.iou_thrs)

    def _figures(self, curves: CocoCurves, metric: str, truth: COCO) -> dict[str, float]:
        fixed_thr = NOT_EVALUATED if self.has_own_thresholds else None
        values = {
            "AP": curves.average_precision(),
            "AP50": fixed_thr or curves.average_precision(iou_thr=0.5),
            "AP75": fixed_thr or curves.average_precision(iou_thr=0.75),
            **{f"AP{area}": curves.average_precision(area) for area in "sml"},
            "AR@300": curves.average_recall(),
            **{f"AR{area}@300": curves.average_recall(area) for area in "sml"},
        }
        for name, frequency in _GROUPS.items():
            ids = [c for c in curves.category_ids if c is not None and truth.cats[c].get("frequency") == frequency]
            values[name] = curves.average_precision(category=ids)
        figures = {f"{metric}_{name}": values[name] for name in self.metric_items or _PRECISION_ITEMS}
        print_log("  ".join(f"{name} {value:.3f}" for name, value in figures.items()), logger="current")
        return figures


def evaluate_federated(
    truth: COCO,
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    category_ids: Sequence[int],
    iou_thrs: Sequence[float],
) -> CocoCurves:
    """As :func:`detkit.evaluation.coco_eval.evaluate`, by the rules of LVIS.

    Args:
        truth: Ground truth; its images have ``neg_category_ids`` and ``not_exhaustive_category_ids``.
        detections: As there, here and below.
        iou_type: The same.
        category_ids: The same.
        iou_thrs: The same.
    """
    present = {(item["image_id"], item["category_id"]) for item in truth.dataset["annotations"]}
    present.update((i, category) for i, image in truth.imgs.items() for category in image["neg_category_ids"])
    judged = [item for item in _best(detections) if (item["image_id"], item["category_id"]) in present]
    partial = {(i, category) for i, image in truth.imgs.items() for category in image["not_exhaustive_category_ids"]}
    return evaluate(truth, judged, iou_type, category_ids, iou_thrs, [_MAX_DETS], not_exhaustive=partial)


def _best(detections: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best detections of each image, of all categories together."""
    by_image: dict[Any, list] = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    return [
        detection
        for listed in by_image.values()
        for detection in sorted(listed, key=lambda item: item["score"], reverse=True)[:_MAX_DETS]
    ]
