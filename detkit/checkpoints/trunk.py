"""Whether a file is for this architecture at all, and what it looks like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable

__all__ = ["check_trunk", "describe", "needs_no_loading"]

# Two networks that share less are different ones: ResNet-50 is half of ResNet-101, and ResNet-18 of ResNet-34, while
# four fifths of ResNet-50 are in a C4 detector, and two thirds in one with plugins in each block.
_LEAST_SHARE = 0.6
_BLOCK = re.compile(r"backbone\.(?:layer|stages\.|layers\.)(\d+)\.(?:blocks\.)?(\d+)\.")
# A name in the state dict tells what a detector is; the first that is found counts.
_METHODS = {
    "roi_head.mask_head.0.": "Cascade Mask R-CNN",
    "roi_head.mask_head.": "Mask R-CNN",
    "roi_head.bbox_head.0.": "Cascade R-CNN",
    "roi_head.": "Faster R-CNN",
    "bbox_head.retina_": "RetinaNet",
    "bbox_head.atss_": "ATSS",
    "bbox_head.gfl_": "GFL",
    "bbox_head.vfnet_": "VFNet",
    "bbox_head.tood_": "TOOD",
    "bbox_head.rtm_": "RTMDet",
    "bbox_head.reppoints_": "RepPoints",
    "bbox_head.multi_level_conv_": "YOLOX",
    "bbox_head.convs_pred.": "YOLOv3",
    "bbox_head.heatmap_head.": "CenterNet",
    "bbox_head.conv_centerness.": "FCOS",
    "bbox_head.rpn_": "RPN",
    "rpn_head.": "RPN",
}


def needs_no_loading(name: str) -> bool:
    """Counts of batches that nothing here reads; frozen batch norms of others keep none."""
    return name.endswith(".num_batches_tracked")


def check_trunk(own: Iterable[str], given: Iterable[str], fitting: Collection[str], name: str) -> None:
    """Refuse a file whose backbone is another one than the model's.

    Args:
        own: Names of the model. One without ``backbone.`` among them is not looked at.
        given: Names of the file, after renaming.
        fitting: Names of the model that get a tensor of the file.
        name: Of the file, for the message.

    Raises:
        ValueError: Less than 60 % of the model's backbone are in the file, or of the file's in the model.
    """
    own, given = list(own), list(given)
    mine = {key for key in own if _is_trunk(key)}
    theirs = {key for key in given if _is_trunk(key)}
    shared = len(mine.intersection(fitting))
    if not mine or shared >= _LEAST_SHARE * max(len(mine), len(theirs)):
        return
    raise ValueError(
        f"{name}: the checkpoint of another architecture: {shared} of {len(mine)} tensors of the model's backbone are "
        f"in it with the same shape. It looks like {describe(given)}; the model is {describe(own)}"
    )


def describe(names: Collection[str]) -> str:
    """What a detector with these weights is, in a few words."""
    method = next((method for part, method in _METHODS.items() if any(key.startswith(part) for key in names)), None)
    trunk = sum(map(_is_trunk, names))
    parts = list(dict.fromkeys(key.partition(".")[0] for key in names))
    if trunk == 0:
        some = ", ".join(list(names)[:3])
        return f"{method or 'something'} without a backbone ({some}{', …' if len(names) > 3 else ''})"
    blocks: dict[int, set[int]] = defaultdict(set)
    for key in names:
        if match := _BLOCK.match(key):
            blocks[int(match[1])].add(int(match[2]))
    counts = "+".join(str(len(blocks[stage])) for stage in sorted(blocks))
    others = ", ".join(part for part in parts if part != "backbone")
    size = f"{counts} blocks, {trunk} tensors" if counts else f"{trunk} tensors"
    return f"{method or 'a detector'} with a backbone of {size}" + (f" ({others})" if others and not method else "")


def _is_trunk(name: str) -> bool:
    return name.startswith("backbone.") and not needs_no_loading(name)
