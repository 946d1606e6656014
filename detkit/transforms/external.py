"""Augmentations of other packages, which are installed beside detkit by those who want them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from detkit.registry import TRANSFORMS, nearest
from detkit.structures.masks import BitmapMasks
from detkit.transforms.objects import require_probability, select_objects

__all__ = ["Albu", "InstaBoost"]

_KEYMAP = {"img": "image", "gt_masks": "masks", "gt_bboxes": "bboxes"}
_NUMBERS = "idx_mapper"  # which objects are left


@TRANSFORMS.register_module()
class Albu(BaseTransform):
    """Augmentations of albumentations (https://albumentations.ai), which is not installed with detkit.

    Objects that a step removes are removed in every field. Newer versions of the package have generators of their
    own, which are seeded from numpy's for each image, so that a sample is the same with any number of workers.

    Args:
        transforms: Steps, each a dict of ``type`` (a name in albumentations) and its arguments; ``transforms`` in
            them again.
        bbox_params: Arguments of its BboxParams, in the format ``pascal_voc``. ``label_fields`` may name fields of
            objects; ``filter_lost_elements`` is accepted for MMDetection's configs, as fields always follow.
        keymap: The package's name of each key of the results dict.
        skip_img_without_anno: Return None where no object is left, so that the dataset takes another image.

    Raises:
        ImportError: albumentations is not installed.
        ValueError: A step that it does not have, boxes in another format, or masks as polygons.
    """

    transforms_keys = None  # of the other package, which says itself what is wrong with them
    bbox_params_keys = None
    keymap_keys = tuple(_KEYMAP)

    def __init__(
        self,
        transforms: Sequence[Mapping[str, Any]],
        bbox_params: Mapping[str, Any] | None = None,
        keymap: Mapping[str, str] | None = None,
        skip_img_without_anno: bool = False,
    ) -> None:
        package = _package("albumentations", "albumentations", "Albu")
        params = dict(bbox_params or {"format": "pascal_voc"})
        if params.get("format") != "pascal_voc":
            raise ValueError(f"bbox_params: the format 'pascal_voc' was expected, got {params.get('format')!r}")
        for key in ("type", "filter_lost_elements", "label_fields"):
            params.pop(key, None)
        self.transforms = [dict(step) for step in transforms]
        self.keymap = dict(_KEYMAP if keymap is None else keymap)
        unknown = set(self.keymap) - set(_KEYMAP)
        if unknown:
            raise ValueError(f"keymap: keys of {sorted(_KEYMAP)} were expected, got {sorted(unknown)}")
        self.skip_img_without_anno = skip_img_without_anno
        self.augment = package.Compose(
            [_build(step, package) for step in self.transforms],
            bbox_params=package.BboxParams(**params, label_fields=[_NUMBERS]),
        )

    def transform(self, results: dict) -> dict | None:
        """Run the steps."""
        if results.get("gt_seg_map") is not None:
            raise ValueError("Albu moves boxes and masks, and the image has a segmentation map")
        masks = results.get("gt_masks")
        if masks is not None and not isinstance(masks, BitmapMasks):
            raise ValueError("Albu: bitmap masks were expected; set poly2mask=True of LoadAnnotations")
        count = len(results.get("gt_bboxes", ()))
        given = {self.keymap["img"]: results["img"], _NUMBERS: list(range(count)), "bboxes": []}
        if "gt_bboxes" in results:
            given[self.keymap.get("gt_bboxes", "bboxes")] = [tuple(box) for box in results["gt_bboxes"].tolist()]
        if masks is not None and len(masks):
            given[self.keymap.get("gt_masks", "masks")] = list(masks.masks)
        if hasattr(self.augment, "set_random_seed"):
            self.augment.set_random_seed(int(np.random.randint(1 << 31)))
        found = self.augment(**given)
        results["img"] = img = found[self.keymap["img"]]
        results["img_shape"] = shape = img.shape[:2]
        kept = np.asarray(found[_NUMBERS], dtype=np.int64)
        if self.skip_img_without_anno and len(kept) == 0:
            return None
        if masks is not None:
            # All masks come back, those of removed objects too.
            moved = [np.asarray(mask) for mask in found.get(self.keymap.get("gt_masks", "masks"), ())]
            results["gt_masks"] = BitmapMasks(moved, *shape)
        if "gt_bboxes" in results:
            boxes = np.zeros_like(results["gt_bboxes"])
            boxes[kept] = np.asarray(found[self.keymap.get("gt_bboxes", "bboxes")], dtype=np.float32).reshape(-1, 4)
            results["gt_bboxes"] = boxes
        select_objects(results, kept)
        return results


@TRANSFORMS.register_module()
class InstaBoost(BaseTransform):
    """Move objects a little within their image and fill what they leave, https://arxiv.org/abs/1908.07801.

    It changes ``img`` and ``instances``, so that it stands between LoadImageFromFile and LoadAnnotations. The package
    instaboostfast does it, which is not installed with detkit.

    Args:
        action_candidate: Of ``normal``, ``horizontal``, ``vertical`` and ``skip``.
        action_prob: Probability of each.
        scale: Least and largest factor of size.
        dx: An object moves by its width divided by this at most.
        dy: The same for its height.
        theta: Least and largest rotation, in degrees.
        color_prob: Probability to change the colours of an object.
        hflag: Look for a place where the ground is alike.
        aug_ratio: Probability to do it.

    Raises:
        ImportError: instaboostfast is not installed.
        ValueError: Candidates and probabilities differ in number, or an object has no mask.
    """

    def __init__(
        self,
        action_candidate: Sequence[str] = ("normal", "horizontal", "skip"),
        action_prob: Sequence[float] = (1, 0, 0),
        scale: Sequence[float] = (0.8, 1.2),
        dx: int = 15,
        dy: int = 15,
        theta: Sequence[float] = (-1, 1),
        color_prob: float = 0.5,
        hflag: bool = False,
        aug_ratio: float = 0.5,
    ) -> None:
        if len(action_candidate) != len(action_prob):
            raise ValueError(f"action_prob: {len(action_prob)} probabilities for {len(action_candidate)} candidates")
        self.aug_ratio = require_probability("aug_ratio", aug_ratio)
        self.package = _package("instaboostfast", "instaboostfast", "InstaBoost")
        self.settings = self.package.InstaBoostConfig(
            tuple(action_candidate), tuple(action_prob), tuple(scale), dx, dy, tuple(theta), color_prob, hflag
        )

    def transform(self, results: dict) -> dict:
        """Draw whether to do it, and move the objects that are not to be ignored."""
        instances = results.get("instances") or []
        if not instances or not np.random.choice([0, 1], p=[1 - self.aug_ratio, self.aug_ratio]):
            return results
        given, ignored = [], [instance for instance in instances if instance["ignore_flag"]]
        for index, instance in enumerate(instances):
            if instance["ignore_flag"]:
                continue
            if "mask" not in instance:
                name = f"annotation {instance['ann_id']}" if "ann_id" in instance else f"object {index}"
                raise ValueError(f"{results.get('img_path', 'image')}: {name}: InstaBoost needs a segmentation")
            x1, y1, x2, y2 = instance["bbox"]
            box = [x1, y1, x2 - x1, y2 - y1]
            given.append({"category_id": instance["bbox_label"], "segmentation": instance["mask"], "bbox": box})
        img = results["img"]
        moved, new_img = self.package.get_new_data(given, img.astype(np.uint8), self.settings, background=None)
        results["img"] = new_img.astype(img.dtype)
        results["instances"] = [
            {
                "bbox": [x, y, x + width, y + height],
                "bbox_label": item["category_id"],
                "mask": item["segmentation"],
                "ignore_flag": 0,
            }
            for item in moved
            for x, y, width, height in [item["bbox"]]
            if width > 0 and height > 0
        ] + ignored
        return results


def _package(module: str, name: str, step: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{step} needs the package {name}: pip install {name} ({error})") from error


def _build(step: Mapping[str, Any], package: Any) -> Any:
    arguments = dict(step)
    kind = arguments.pop("type", None)
    if not isinstance(kind, str) or not hasattr(package, kind):
        close = nearest(str(kind), [name for name in dir(package) if name[:1].isupper()])
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Albu: albumentations has no {kind!r}{hint}")
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner, package) for inner in arguments["transforms"]]
    return getattr(package, kind)(**arguments)
