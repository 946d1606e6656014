"""From a ``results`` dict to what a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData, PixelData

from detkit.registry import TRANSFORMS
from detkit.structures import DetDataSample

__all__ = ["PackDetInputs"]

# Field of the instances for each key of the results dict.
_INSTANCE_FIELDS = {"gt_bboxes": "bboxes", "gt_bboxes_labels": "labels", "gt_masks": "masks"}


@TRANSFORMS.register_module()
class PackDetInputs(BaseTransform):
    """Pack ``img`` into ``inputs`` (C, H, W), and annotations and image facts into a ``DetDataSample``.

    Objects whose ``gt_ignore_flags`` is set become ``ignored_instances``, the others ``gt_instances``.

    Args:
        meta_keys: Keys of the results dict that become metainfo where they are present.

    Raises:
        ValueError: A box that is not finite; no loss would tell, as such a box overlaps nothing and is not learnt.
            Or proposals that LoadProposals has not loaded.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
            "flip",
            "flip_direction",
        ),
    ) -> None:
        self.meta_keys = (meta_keys,) if isinstance(meta_keys, str) else tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Give ``{'inputs': tensor, 'data_samples': DetDataSample}``."""
        packed: dict[str, Any] = {}
        _check_boxes(results)
        if "img" in results:
            img = results["img"]
            img = img[..., None] if img.ndim == 2 else img
            packed["inputs"] = torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))
        sample = DetDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        sample.gt_instances, sample.ignored_instances = _instances(results)
        if "proposals" in results:
            if "proposals_scores" not in results:
                raise ValueError(
                    f"{results.get('img_path', 'image')}: the dataset has a proposal_file, and the pipeline no "
                    "LoadProposals, which takes the proposals from it"
                )
            sample.proposals = InstanceData(
                bboxes=_tensor(results["proposals"]), scores=_tensor(results["proposals_scores"])
            )
        if "gt_seg_map" in results:
            facts = {key: results[key] for key in ("ignore_index",) if key in results}
            seg_map = torch.from_numpy(np.ascontiguousarray(results["gt_seg_map"][None]))
            sample.gt_sem_seg = PixelData(metainfo=facts, sem_seg=seg_map)
        packed["data_samples"] = sample
        return packed


def _check_boxes(results: dict) -> None:
    boxes = results.get("gt_bboxes")
    if not isinstance(boxes, np.ndarray) or np.isfinite(boxes).all():
        return
    index = int(np.nonzero(~np.isfinite(boxes).all(axis=1))[0][0])
    read = results.get("instances", ())
    # Steps before may have dropped objects; then only the place among those that are left is known.
    number = read[index].get("ann_id") if len(read) == len(boxes) else None
    name = f"object {index} of {len(boxes)}" if number is None else f"annotation {number}"
    raise ValueError(
        f"{results.get('img_path', 'an image without img_path')}: {name}: the box {boxes[index].tolist()} is not "
        "finite; a step of the pipeline before PackDetInputs has spoilt it"
    )


def _instances(results: dict) -> tuple[InstanceData, InstanceData]:
    """The objects to be found, and the ignored ones."""
    found, ignored = InstanceData(), InstanceData()
    flags = results.get("gt_ignore_flags")
    for key, field in _INSTANCE_FIELDS.items():
        values = results.get(key)
        if values is None:
            continue
        split = values if flags is None else values[~flags]
        found[field] = _tensor(split)
        if flags is not None:
            ignored[field] = _tensor(values[flags])
    return found, ignored


def _tensor(value: Any) -> Any:
    """A tensor from an array; anything else, such as masks, as it is."""
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
