"""In which pixels a pipeline leaves the ground truth: of the image, as metrics want it, or of the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.structures import InstanceData, PixelData
from torch import nn

__all__ = ["loads_in_original_frame", "to_image_frame", "to_network_frame"]

# What may stand between loading and annotations without moving anything but by the scale factor.
_IN_PLACE = ("Load", "Normalize", "Pad", "PhotoMetric", "Color", "Brightness", "Contrast")


def loads_in_original_frame(dataset: Any, source: str) -> bool:
    """Whether a pipeline loads annotations after it has resized the image, so that they are not resized.

    Args:
        dataset: With a ``pipeline`` of transforms, bare or in wrappers; without one the answer is no.
        source: Config path of the pipeline, for messages.

    Raises:
        ValueError: No annotations are loaded, or something other than resizing comes before.
    """
    joined = [loads_in_original_frame(one, source) for one in getattr(dataset, "datasets", None) or ()]
    if joined:
        if len(set(joined)) > 1:
            raise ValueError(f"{source}: some of the joined datasets load annotations before Resize, some after it")
        return joined[0]
    names = _names(dataset)
    if not names:
        return False
    loading = next((index for index, name in enumerate(names) if "Annotations" in name), None)
    if loading is None:
        raise ValueError(
            f"{source}: a loss needs annotations, but the pipeline ({', '.join(names)}) loads none; add "
            "dict(type='LoadAnnotations', with_bbox=True), or leave loss=True out"
        )
    before = [name for name in names[:loading] if not name.startswith(_IN_PLACE)]
    moved = [name for name in before if "Resize" not in name]
    if moved:
        raise ValueError(
            f"{source}: {names[loading]} comes after {', '.join(moved)}, so that boxes and image may not belong "
            f"together; put it before, or only Resize in between"
        )
    return bool(before)


def to_network_frame(sample: Any) -> Any:
    """A copy of ``sample`` whose ground truth is in pixels of the network's input.

    Args:
        sample: With ``scale_factor`` (width, height), network's size over original size.

    Raises:
        ValueError: No ``scale_factor``, or a flipped image.
    """
    scale = sample.get("scale_factor")
    if scale is None or sample.get("flip"):
        raise ValueError(
            f"{sample.get('img_path')}: a loss on annotations loaded after Resize needs scale_factor and no flip; "
            "name 'scale_factor' in meta_keys of PackDetInputs"
        )
    copy = _with_truth_scaled(sample, scale)
    if "gt_sem_seg" in copy:
        seg = copy.gt_sem_seg.sem_seg
        height, width = round(seg.shape[-2] * scale[1]), round(seg.shape[-1] * scale[0])
        resized = nn.functional.interpolate(seg[None].float(), (height, width), mode="nearest")[0].to(seg.dtype)
        copy.gt_sem_seg = PixelData(metainfo=copy.gt_sem_seg.metainfo, sem_seg=resized)
    return copy


def to_image_frame(sample: Any, dataset: Any) -> Any:
    """``sample`` with its boxes and masks of the ground truth in pixels of the image, as predictions are.

    Args:
        sample: With ``scale_factor`` (width, height) where the pipeline resizes.
        dataset: The dataset it is of; it tells whether the annotations were resized with the image.
    """
    for joined in getattr(dataset, "datasets", None) or ():
        return to_image_frame(sample, joined)
    names = _names(dataset)
    loading = next((index for index, name in enumerate(names) if "Annotations" in name), len(names))
    scale = sample.get("scale_factor")
    if scale is None or not any("Resize" in name for name in names[loading:]):
        return sample
    return _with_truth_scaled(sample, [1 / factor for factor in scale])


def _names(dataset: Any) -> list[str]:
    """Classes of a dataset's transforms; none where it has no pipeline."""
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", None) or ()
    return [type(transform).__name__ for transform in transforms]


def _with_truth_scaled(sample: Any, scale: Sequence[float]) -> Any:
    copy = sample.new()
    for field in ("gt_instances", "ignored_instances"):
        if field in copy:
            setattr(copy, field, _scaled(copy.get(field), scale))
    return copy


def _scaled(instances: InstanceData, scale: Sequence[float]) -> InstanceData:
    copy = instances.new()
    if "bboxes" in copy:
        copy.bboxes = copy.bboxes * copy.bboxes.new_tensor([scale[0], scale[1], scale[0], scale[1]])
    if "masks" in copy:
        masks = copy.masks
        copy.masks = masks.resize((round(masks.height * scale[1]), round(masks.width * scale[0])))
    return copy
