"""LVISMetric: average precision where only some categories of an image are annotated, https://arxiv.org/abs/1908.03195.

The rules are those of LVIS's own evaluation; what it has in common with COCO's is pycocotools'. Each category is
judged on the images that have something of it, so that a thousand categories take no longer than their objects.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import print_log
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit.evaluation.coco_eval import AREAS, NOT_EVALUATED, CocoCurves, index
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


class _FederatedEval(COCOeval):
    """Leaves out unmatched detections in images whose annotation is not exhaustive."""

    not_exhaustive: frozenset = frozenset()

    def evaluateImg(self, imgId: Any, catId: Any, aRng: Any, maxDet: int) -> dict[str, Any] | None:
        """As COCOeval's."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and imgId in self.not_exhaustive:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def evaluate_federated(
    truth: COCO,
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    category_ids: Sequence[int],
    iou_thrs: Sequence[float],
) -> CocoCurves:
    """Match detections with ground truth and accumulate precision and recall, category by category.

    Args:
        truth: Ground truth; its images have ``neg_category_ids`` and ``not_exhaustive_category_ids``.
        detections: As for :func:`detkit.evaluation.coco_eval.evaluate`.
        iou_type: ``bbox`` or ``segm``.
        category_ids: Categories to be judged.
        iou_thrs: IoU from which a detection is right.
    """
    objects: dict[Any, list] = defaultdict(list)
    present: set[tuple] = set()
    for annotation in truth.dataset["annotations"]:
        objects[annotation["category_id"]].append(annotation)
        present.add((annotation["image_id"], annotation["category_id"]))
    found: dict[Any, list] = defaultdict(list)
    for detection in _best(detections):
        image, category = detection["image_id"], detection["category_id"]
        if (image, category) in present or category in truth.imgs[image]["neg_category_ids"]:
            found[category].append(detection)
    judged = sorted(set(category_ids))
    shape = (len(iou_thrs), 101, len(judged), len(AREAS), 1)
    precision, recall = np.full(shape, NOT_EVALUATED), np.full((shape[0], *shape[2:]), NOT_EVALUATED)
    for number, category in enumerate(judged):
        if not objects[category]:
            continue  # nothing to be found
        images = {item["image_id"] for item in [*objects[category], *found[category]]}
        parts = [_part(truth, images, category, items) for items in (objects[category], found[category])]
        judge = _FederatedEval(*parts, iou_type)
        judge.params.iouThrs = np.asarray(iou_thrs, dtype=float)
        judge.params.maxDets = [_MAX_DETS]
        judge.not_exhaustive = frozenset(i for i in images if category in truth.imgs[i]["not_exhaustive_category_ids"])
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
            judge.accumulate()
        precision[:, :, number], recall[:, number] = judge.eval["precision"][:, :, 0], judge.eval["recall"][:, 0]
    return CocoCurves(precision, recall, list(iou_thrs), [_MAX_DETS], judged)


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


def _part(truth: COCO, images: set, category: Any, items: Sequence[Mapping[str, Any]]) -> COCO:
    """A COCO object of some annotations of one category, with ids that begin at 1: COCOeval takes 0 for none."""
    return index(
        {
            "images": [truth.imgs[image] for image in images],
            "categories": [truth.cats[category]],
            "annotations": [{**item, "id": number} for number, item in enumerate(items, start=1)],
        }
    )
