"""Changes of a whole training batch, after its images were padded and stacked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from detkit.events import get_event_storage, has_event_storage
from detkit.registry import MODELS
from detkit.structures import DetDataSample

__all__ = ["BatchFixedSizePad", "BatchSyncRandomResize"]

Samples = list[DetDataSample]


@MODELS.register_module()
class BatchSyncRandomResize(nn.Module):
    """Resizes batches to a size that is drawn anew every few iterations, the same on all processes; YOLOX's.

    The height is drawn by the run's seed and the number of such periods done, with no communication and no state: a
    resumed run goes on with the sizes of the uninterrupted one. The width follows from the batch's own aspect ratio.
    Batches of the first period, and those of no run, stay as they are. Masks and semantic maps are resized too.

    Args:
        random_size_range: Least and largest height, in pixels; rounded to multiples of ``size_divisor``.
        interval: Iterations of a period.
        size_divisor: Sizes are multiples of this.

    Raises:
        ValueError: A range, an interval or a divisor that is none.
    """

    def __init__(self, random_size_range: Sequence[int], interval: int = 10, size_divisor: int = 32) -> None:
        super().__init__()
        if min(interval, size_divisor) < 1:
            raise ValueError(f"numbers of at least 1 were expected, got {interval=} and {size_divisor=}")
        low, high = (round(size / size_divisor) for size in random_size_range)
        if not 1 <= low <= high:
            raise ValueError(
                f"random_size_range: two sizes of at least {size_divisor}, the smaller first, were expected, got "
                f"{random_size_range!r}"
            )
        self.multiples = (low, high)
        self.interval = interval
        self.size_divisor = size_divisor

    def forward(self, inputs: Tensor, data_samples: Samples | None) -> tuple[Tensor, Samples | None]:
        """The batch (N, C, H, W) and its samples, resized."""
        height, width = inputs.shape[-2:]
        size = self.size(height, width)
        if size == (height, width):
            return inputs, data_samples
        factor_y, factor_x = size[0] / height, size[1] / width
        for sample in data_samples or ():
            facts = {
                name: (int(sample.metainfo[name][0] * factor_y), int(sample.metainfo[name][1] * factor_x))
                for name in ("img_shape", "pad_shape")
            }
            sample.set_metainfo({**facts, "batch_input_shape": size})
            _resize_annotations(sample, factor_y, factor_x)
        return F.interpolate(inputs, size=size, mode="bilinear", align_corners=False), data_samples

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that a batch of this size gets in the present iteration."""
        storage = get_event_storage() if has_event_storage() else None
        if storage is None or storage.seed is None:
            return height, width
        period = (storage.step - 1) // self.interval  # the step counts the present iteration
        if period < 1:
            return height, width
        multiple = int(np.random.default_rng((storage.seed, period)).integers(*self.multiples, endpoint=True))
        return self.size_divisor * multiple, self.size_divisor * max(int(width / height * multiple), 1)


@MODELS.register_module()
class BatchFixedSizePad(nn.Module):
    """Pads batches at the right and at the bottom to one size; larger ones stay as they are.

    Args:
        size: (height, width).
        img_pad_value: Value of padded pixels, after normalisation.
        pad_mask: Pad the masks of the objects too.
        mask_pad_value: With this.
        pad_seg: Pad semantic maps too.
        seg_pad_value: With this.

    Raises:
        ValueError: A size that is none.
    """

    def __init__(
        self,
        size: Sequence[int],
        img_pad_value: float = 0,
        pad_mask: bool = False,
        mask_pad_value: int = 0,
        pad_seg: bool = False,
        seg_pad_value: int = 255,
    ) -> None:
        super().__init__()
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size: (height, width) was expected, got {size!r}")
        self.size = tuple(size)
        self.img_pad_value = img_pad_value
        self.pad_mask = pad_mask
        self.mask_pad_value = mask_pad_value
        self.pad_seg = pad_seg
        self.seg_pad_value = seg_pad_value

    def forward(self, inputs: Tensor, data_samples: Samples | None) -> tuple[Tensor, Samples | None]:
        """The batch (N, C, H, W) and its samples, padded."""
        size = (max(inputs.shape[-2], self.size[0]), max(inputs.shape[-1], self.size[1]))
        if size == tuple(inputs.shape[-2:]):
            return inputs, data_samples
        for sample in data_samples or ():
            sample.set_metainfo({"batch_input_shape": size, "pad_shape": size})
            if self.pad_mask and "masks" in sample.gt_instances:
                masks = sample.gt_instances.masks
                sample.gt_instances.masks = masks.pad(size, pad_val=self.mask_pad_value)
            if self.pad_seg and "gt_sem_seg" in sample:
                seg = sample.gt_sem_seg
                padded = _padded(seg.sem_seg, size, self.seg_pad_value)
                sample.gt_sem_seg = PixelData(metainfo=seg.metainfo, sem_seg=padded)
        return _padded(inputs, size, self.img_pad_value), data_samples


def _padded(image: Tensor, size: tuple[int, int], value: float) -> Tensor:
    return F.pad(image, (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2]), value=value)


def _resize_annotations(sample: DetDataSample, factor_y: float, factor_x: float) -> None:
    for name in ("gt_instances", "ignored_instances"):
        objects: InstanceData | None = sample.get(name)
        if objects is not None and "bboxes" in objects:
            corners = objects.bboxes.unflatten(-1, (2, 2))
            objects.bboxes = torch.stack([corners[..., 0] * factor_x, corners[..., 1] * factor_y], dim=-1).flatten(-2)
        if objects is not None and "masks" in objects:
            masks = objects.masks
            objects.masks = masks.resize((int(masks.height * factor_y), int(masks.width * factor_x)))
    if "gt_sem_seg" in sample:
        seg = sample.gt_sem_seg.sem_seg
        size = (int(seg.shape[-2] * factor_y), int(seg.shape[-1] * factor_x))
        resized = F.interpolate(seg[None].float(), size=size, mode="nearest")[0].to(seg.dtype)
        sample.gt_sem_seg = PixelData(metainfo=sample.gt_sem_seg.metainfo, sem_seg=resized)
