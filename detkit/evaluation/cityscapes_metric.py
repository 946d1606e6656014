"""CityScapesMetric: average precision of masks by the rules of https://www.cityscapes-dataset.com/benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine import fileio
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from pycocotools import mask as rle

from detkit.evaluation.coco_results import check_mask_sizes, to_numpy, to_run_lengths
from detkit.registry import METRICS, nearest

__all__ = ["CityScapesMetric"]

# Ids of the classes with instances in the ground truth: id * 1000 + number is an instance, the id alone a group.
_CLASS_IDS = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
_FIRST_INSTANCE = 1000
_VOID = (-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)  # where anything may be predicted
_MIN_PIXELS = 100  # smaller instances are not to be found
_IOU_THRS = np.arange(0.5, 1.0, 0.05)


@dataclass(frozen=True)
class _Found:
    """A predicted mask beside the ground truth of its image.

    Attributes:
        class_id: Of the ground truth.
        score: In [0, 1].
        pixels: How many it has.
        void: How many of them are where anything may be.
        common: By instance or group of its class, how many it shares with it.
    """

    class_id: int
    score: float
    pixels: int
    void: int
    common: dict[int, int]


@METRICS.register_module()
class CityScapesMetric(BaseMetric):
    """Mean average precision of masks over IoU 0.50:0.05:0.95 (``cityscapes/mAP``) and at 0.50 (``AP@50``).

    A prediction that lies mostly in void, in a group or in an instance below 100 pixels is neither right nor wrong.
    The package cityscapesscripts is not needed.

    Args:
        outfile_prefix: Folder below which ``results/`` gets a text file for each image and a picture for each mask,
            as the test server takes them; written with ``format_only``.
        seg_prefix: Folder of the cities with ``*_gtFine_instanceIds.png``.
        format_only: Write the predictions and calculate nothing.
        collect_device: ``cpu`` or ``gpu``: how results travel between processes.
        prefix: What stands before the slash in the names of results.
        backend_args: File backend of mmengine, for the ground truth.

    Raises:
        ValueError: No ``seg_prefix``, or no ``outfile_prefix`` with ``format_only``; later: a class that Cityscapes
            does not have, predictions without masks.
        FileNotFoundError: An image without ground truth.
    """

    default_prefix = "cityscapes"

    def __init__(
        self,
        outfile_prefix: str | None = None,
        seg_prefix: str | None = None,
        format_only: bool = False,
        collect_device: str = "cpu",
        prefix: str | None = None,
        backend_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if format_only and outfile_prefix is None:
            raise ValueError("format_only=True writes the predictions: give outfile_prefix, where to")
        if not format_only and seg_prefix is None:
            raise ValueError("seg_prefix: the folder of the ground truth was expected, data/cityscapes/gtFine/val")
        self.folder = None if outfile_prefix is None else Path(outfile_prefix, "results")
        self.seg_prefix = seg_prefix
        self.format_only = format_only
        self.backend_args = None if backend_args is None else dict(backend_args)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any] | BaseDataElement]) -> None:
        """Hold the predicted masks of some images against the ground truth, or write them.

        Args:
            data_batch: Not used.
            data_samples: Per image ``img_path``, ``ori_shape`` and ``pred_instances``: ``masks`` (D, H, W) or
                run lengths, ``labels`` (D,), ``scores`` (D,) and possibly ``mask_scores``.
        """
        for sample in data_samples:
            sample = sample.to_dict() if isinstance(sample, BaseDataElement) else sample
            predicted, path = sample["pred_instances"], Path(sample["img_path"])
            if "masks" not in predicted:
                raise ValueError(f"{path}: CityScapesMetric needs masks, but the model predicts none")
            masks = to_run_lengths(predicted["masks"])
            check_mask_sizes({"img_id": str(path), "ori_shape": sample["ori_shape"], "masks": masks})
            class_ids = [self._class_id(int(label)) for label in to_numpy(predicted["labels"])]
            scores = to_numpy(predicted.get("mask_scores", predicted["scores"])).astype(float).tolist()
            if self.format_only:
                self._write(path.stem, masks, class_ids, scores)
                self.results.append(None)
                continue
            truth = self._truth(path, tuple(sample["ori_shape"][:2]))
            ids, counts = np.unique(truth, return_counts=True)
            objects = {int(i): int(n) for i, n in zip(ids, counts, strict=True)}
            found = [_compare(truth, *one) for one in zip(masks, class_ids, scores, strict=True)]
            self.results.append((objects, [one for one in found if one.pixels]))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Calculate the figures from all images."""
        if self.format_only:
            print_log(f"{self.folder}: predictions of {len(results)} images written", logger="current")
            return {}
        table = np.array([[_precision(results, one, thr) for thr in _IOU_THRS] for one in _CLASS_IDS.values()])
        known = table[~np.isnan(table).any(axis=1)]
        if not len(known):
            raise ValueError(f"{self.seg_prefix}: no instance in the ground truth of {len(results)} images")
        for name, row in zip(_CLASS_IDS, table, strict=True):
            print_log(f"{name:12} AP {row.mean():.3f}  AP@50 {row[0]:.3f}", logger="current")
        return {"mAP": float(known.mean()), "AP@50": float(known[:, 0].mean())}

    def _class_id(self, label: int) -> int:
        classes = (self.dataset_meta or {}).get("classes") or ()
        if not 0 <= label < len(classes):
            raise ValueError(f"CityScapesMetric: the label {label} stands for none of the {len(classes)} classes")
        if classes[label] not in _CLASS_IDS:
            close = nearest(classes[label], _CLASS_IDS)[0]
            raise ValueError(f"CityScapesMetric: Cityscapes has no class {classes[label]!r}; did you mean {close!r}?")
        return _CLASS_IDS[classes[label]]

    def _truth(self, path: Path, shape: tuple[int, int]) -> NDArray[Any]:
        name = path.name.replace("leftImg8bit", "gtFine_instanceIds")
        file = fileio.join_path(self.seg_prefix, path.parent.name, name, backend_args=self.backend_args)
        try:
            content = fileio.get(file, backend_args=self.backend_args)
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: the ground truth of {path} does not exist (seg_prefix)") from None
        truth = mmcv.imfrombytes(content, flag="unchanged")
        if truth is None or truth.shape != shape:
            got = None if truth is None else truth.shape
            raise ValueError(f"{file}: instance ids of shape {shape} were expected, got {got}")
        return truth

    def _write(self, stem: str, masks: Sequence[dict], class_ids: Sequence[int], scores: Sequence[float]) -> None:
        folder = self.folder or Path()
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, (mask, class_id, score) in enumerate(zip(masks, class_ids, scores, strict=True)):
            name = f"{stem}_{number}_{class_id}.png"
            cv2.imwrite(str(folder / name), rle.decode(mask) * 255)
            lines.append(f"{name} {class_id} {score}\n")
        (folder / f"{stem}_pred.txt").write_text("".join(lines))


def _compare(truth: NDArray[Any], mask: dict, class_id: int, score: float) -> _Found:
    ids, counts = np.unique(truth[rle.decode(mask).astype(bool)], return_counts=True)
    common = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if _class_of(int(i)) == class_id}
    return _Found(class_id, score, int(counts.sum()), int(counts[np.isin(ids, _VOID)].sum()), common)


def _class_of(instance: int) -> int:
    return instance // _FIRST_INSTANCE if instance >= _FIRST_INSTANCE else instance


def _precision(results: Sequence[tuple[dict[int, int], list[_Found]]], class_id: int, iou_thr: float) -> float:
    """Average precision of a class; not a number where it has no instance."""
    scores: list[float] = []
    right: list[bool] = []
    missed, any_object, any_found = 0, False, False
    for objects, predicted in results:
        mine = [one for one in predicted if one.class_id == class_id]
        wanted = {i: n for i, n in objects.items() if i >= _FIRST_INSTANCE and _class_of(i) == class_id}
        wanted = {i: n for i, n in wanted.items() if n >= _MIN_PIXELS}
        any_object, any_found = any_object or bool(wanted), any_found or bool(mine)
        for instance, pixels in wanted.items():
            hits = sorted((one.score for one in mine if _iou(one, instance, pixels) > iou_thr), reverse=True)
            missed += not hits
            scores += hits
            right += [True, *[False] * (len(hits) - 1)] if hits else []
        for one in mine:
            if any(_iou(one, i, objects[i]) > iou_thr for i in one.common):
                continue
            small = sum(n for i, n in one.common.items() if objects[i] < _MIN_PIXELS)
            groups = sum(n for i, n in one.common.items() if i < _FIRST_INSTANCE)
            if (one.void + groups + small) / one.pixels <= iou_thr:
                scores.append(one.score)
                right.append(False)
    if not any_object:
        return float("nan")
    return _area(np.array(scores), np.array(right, dtype=float), missed) if any_found and scores else 0.0


def _iou(one: _Found, instance: int, pixels: int) -> float:
    common = one.common.get(instance, 0)
    return common / (pixels + one.pixels - common)


def _area(scores: NDArray[Any], right: NDArray[Any], missed: int) -> float:
    """Area under the curve as the benchmark sums it: each point's precision times half the recall to both sides."""
    order = np.argsort(scores, kind="stable")
    below = np.concatenate([[0.0], np.cumsum(right[order])])  # how many right ones score less
    first = np.unique(scores[order], return_index=True)[1]
    true = below[-1] - below[first]
    precision = np.append(true / (len(scores) - first), 1.0)
    recall = np.append(true / (below[-1] + missed), 0.0)
    padded = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, (padded[:-2] - padded[2:]) / 2))
