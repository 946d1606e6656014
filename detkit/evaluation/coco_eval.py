"""The calculation behind COCO's average precision: pycocotools' COCOeval, in memory and without its printing."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ["AREAS", "NOT_EVALUATED", "CocoCurves", "evaluate", "index"]

AREAS = ("all", "s", "m", "l")  # below 32², below 96² and above, in pixels of the original image
COCO_RECALL_LEVELS = np.linspace(0, 1, 101)
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
    category_ids: Sequence[int],
    iou_thrs: Sequence[float],
    max_dets: Sequence[int],
    use_categories: bool = True,
    not_exhaustive: Collection[tuple[Any, int]] = (),
) -> CocoCurves:
    """Match detections with ground truth and accumulate precision and recall.

    Each category is judged on the images that have something of it, which gives COCOeval's numbers and takes no
    longer than the objects do, however many categories there are.

    Args:
        truth: Ground truth; all its images are judged.
        detections: ``image_id``, ``category_id``, ``score``, ``area``, and ``bbox`` (x, y, width, height) or
            ``segmentation`` (run-length) of each.
        iou_type: ``bbox`` or ``segm``.
        category_ids: Categories to be judged.
        iou_thrs: IoU from which a detection is right.
        max_dets: Limits on the number of detections per image, ascending.
        use_categories: Whether a detection must have the category of the object it finds.
        not_exhaustive: (image, category) where a detection without an object is neither right nor wrong.
    """
    # COCOeval orders categories by id, whatever the order they were asked in.
    judged: list[int | None] = sorted(set(category_ids)) if use_categories else [None]  # type: ignore[assignment]
    objects, found = (_by_category(items, use_categories) for items in (truth.dataset["annotations"], detections))
    levels = len(COCO_RECALL_LEVELS)
    precision = np.full((len(iou_thrs), levels, len(judged), len(AREAS), len(max_dets)), NOT_EVALUATED)
    recall = np.full((len(iou_thrs), len(judged), len(AREAS), len(max_dets)), NOT_EVALUATED)
    for number, category in enumerate(judged):
        if not objects[category]:
            continue  # nothing to be found
        images = {item["image_id"] for item in [*objects[category], *found[category]]}
        judge = _Judge(*(_part(truth, images, items) for items in (objects[category], found[category])), iou_type)
        judge.params.iouThrs = np.asarray(iou_thrs, dtype=float)
        judge.params.maxDets = list(max_dets)
        judge.params.useCats = int(use_categories)
        judge.not_exhaustive = {image for image in images if (image, category) in not_exhaustive}
        with contextlib.redirect_stdout(io.StringIO()):
            judge.evaluate()
            judge.accumulate()
        precision[:, :, number], recall[:, number] = judge.eval["precision"][:, :, 0], judge.eval["recall"][:, 0]
    return CocoCurves(precision, recall, list(iou_thrs), list(max_dets), judged)


class _Judge(COCOeval):
    """Leaves out unmatched detections in images whose annotation is not exhaustive."""

    not_exhaustive: Collection[Any] = ()

    def evaluateImg(self, imgId: Any, catId: Any, aRng: Any, maxDet: int) -> dict[str, Any] | None:
        """As COCOeval's."""
        result = super().evaluateImg(imgId, catId, aRng, maxDet)
        if result is not None and imgId in self.not_exhaustive:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def _by_category(items: Sequence[Mapping[str, Any]], use_categories: bool) -> defaultdict[Any, list]:
    by_category: defaultdict[Any, list] = defaultdict(list)
    for item in items:
        by_category[item["category_id"] if use_categories else None].append(item)
    return by_category


def _part(truth: COCO, images: Collection[Any], items: Sequence[Mapping[str, Any]]) -> COCO:
    """A COCO object of some annotations, with ids that begin at 1: COCOeval takes 0 for none."""
    categories = {item["category_id"] for item in items}
    return index(
        {
            "images": [truth.imgs[image] for image in images],
            "categories": [{"id": category} for category in categories],
            "annotations": [{**item, "id": number} for number, item in enumerate(items, start=1)],
        }
    )


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > NOT_EVALUATED]
    return float(known.mean()) if known.size else NOT_EVALUATED
