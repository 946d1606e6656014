"""The calculation behind COCO's average precision: pycocotools' COCOeval, in memory and without its printing."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["AREAS", "NOT_EVALUATED", "CocoCurves", "evaluate", "index"]

AREAS = ("all", "s", "m", "l")  # below 32², below 96² and above, in pixels of the original image
NOT_EVALUATED = -1.0  # pycocotools' value of a figure that no ground truth or threshold stands behind


class CocoCurves(NamedTuple):
    """Precision and recall as COCOeval accumulates them; -1 where there is no ground truth.

    Attributes:
        precision: (T, R, K, A, M): IoU thresholds, recall levels, categories, areas, detections per image.
        recall: (T, K, A, M), the highest recall reached.
        iou_thrs: The T thresholds.
        max_dets: The M limits on detections per image, ascending.
        category_ids: The K categories, ascending; one, None, when categories are not told apart.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    iou_thrs: Sequence[float]
    max_dets: Sequence[int]
    category_ids: Sequence[int | None]

    def average_precision(
        self,
        area: str = "all",
        iou_thr: float | None = None,
        max_dets: int | None = None,
        category: int | Sequence[int] | None = None,
    ) -> float:
        """Mean over thresholds (or at ``iou_thr``), recall levels and categories (or of ``category``, one or some)."""
        thresholds = slice(None) if iou_thr is None else np.isclose(self.iou_thrs, iou_thr)
        chosen = self.category_ids if category is None else category
        chosen = chosen if isinstance(chosen, Sequence) else [chosen]
        categories = np.array([self.category_ids.index(one) for one in chosen], dtype=int)
        values = self.precision[thresholds][:, :, categories, AREAS.index(area), self._limit(max_dets)]
        return _mean(values)

    def average_recall(self, area: str = "all", max_dets: int | None = None) -> float:
        """Mean over thresholds and categories of the highest recall, at ``max_dets`` or the largest limit."""
        return _mean(self.recall[:, :, AREAS.index(area), self._limit(max_dets)])

    def _limit(self, max_dets: int | None) -> int:
        return -1 if max_dets is None else list(self.max_dets).index(max_dets)


def index(content: Mapping[str, Any]) -> COCO:
    """A COCO object of the content of an annotation file.

    Areas and crowd flags that a file leaves out are filled in. The annotations are copied: evaluation writes
    to them.
    """
    annotations = [{"iscrowd": 0, **annotation} for annotation in content["annotations"]]
    for annotation in annotations:
        if "area" not in annotation:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    coco = COCO()
    coco.dataset = {**content, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def evaluate(
    truth: COCO,
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
    iou_thrs: Sequence[float],
    max_dets: Sequence[int],
    use_categories: bool = True,
) -> CocoCurves:
    """Match detections with ground truth and accumulate precision and recall.

    Args:
        truth: Ground truth.
        detections: ``image_id``, ``category_id``, ``score``, ``area``, and ``bbox`` (x, y, width, height) or
            ``segmentation`` (run-length) of each.
        iou_type: ``bbox`` or ``segm``.
        image_ids: Images to be judged; those of ``truth`` beyond them do not count as missed.
        category_ids: Categories to be judged.
        iou_thrs: IoU from which a detection is right.
        max_dets: Three limits on the number of detections per image, ascending.
        use_categories: Whether a detection must have the category of the object it finds.
    """
    found = index(
        {
            "images": truth.dataset["images"],
            "categories": truth.dataset["categories"],
            "annotations": [{"id": number, **item} for number, item in enumerate(detections, start=1)],
        }
    )
    judge = COCOeval(truth, found, iou_type)
    judge.params.imgIds = list(image_ids)
    judge.params.catIds = list(category_ids)
    judge.params.iouThrs = np.asarray(iou_thrs, dtype=float)
    judge.params.maxDets = list(max_dets)
    judge.params.useCats = int(use_categories)
    with contextlib.redirect_stdout(io.StringIO()):
        judge.evaluate()
        judge.accumulate()
    # COCOeval orders categories by id, whatever the order they were asked in.
    judged = sorted(set(category_ids)) if use_categories else [None]
    return CocoCurves(judge.eval["precision"], judge.eval["recall"], list(iou_thrs), list(max_dets), judged)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > NOT_EVALUATED]
    return float(known.mean()) if known.size else NOT_EVALUATED
