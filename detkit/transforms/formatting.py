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
        if "img" in results:
            img = results["img"]
            img = img[..., None] if img.ndim == 2 else img
            packed["inputs"] = torch.from_numpy(np.ascontiguousarray(img.transpose(2, 0, 1)))
        sample = DetDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        sample.gt_instances, sample.ignored_instances = _instances(results)
        if "proposals" in results:
            sample.proposals = InstanceData(
                bboxes=_tensor(results["proposals"]), scores=_tensor(results["proposals_scores"])
            )
        if "gt_seg_map" in results:
            facts = {key: results[key] for key in ("ignore_index",) if key in results}
            seg_map = torch.from_numpy(np.ascontiguousarray(results["gt_seg_map"][None]))
            sample.gt_sem_seg = PixelData(metainfo=facts, sem_seg=seg_map)
        packed["data_samples"] = sample
        return packed


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
