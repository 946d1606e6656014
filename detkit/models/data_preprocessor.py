"""From a list of images of the pipeline to one normalised, padded batch on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import PixelData
from torch import Tensor, nn

from detkit.registry import MODELS
from detkit.structures import DetDataSample

__all__ = ["DetDataPreprocessor"]


@MODELS.register_module()
class DetDataPreprocessor(BaseDataPreprocessor):
    """Channel order, normalisation, and padding at the right and bottom to the batch's largest size.

    Sets ``batch_input_shape`` (of the batch) and ``pad_shape`` (the image's own size, rounded up to the
    divisor) of each data sample.

    Args:
        mean: Per channel, of pixels in 0 … 255; None does not normalise.
        std: Per channel.
        pad_size_divisor: Height and width of the batch are multiples of this.
        pad_value: Value of padded pixels, after normalisation.
        pad_mask: Pad the masks of the objects too.
        mask_pad_value: With this.
        pad_seg: Pad semantic maps too.
        seg_pad_value: With this.
        bgr_to_rgb: Swap the channel order.
        rgb_to_bgr: Swap the channel order.
        boxtype2tensor: Accepted for MMDetection's configs; boxes are plain tensors either way.
        non_blocking: Copy to the device without waiting (from pinned memory).
        batch_augments: Registered modules ``(inputs, data_samples) -> (inputs, data_samples)``, training only.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pad_size_divisor: int = 1,
        pad_value: float = 0,
        pad_mask: bool = False,
        mask_pad_value: int = 0,
        pad_seg: bool = False,
        seg_pad_value: int = 255,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        boxtype2tensor: bool = True,
        non_blocking: bool = True,
        batch_augments: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(non_blocking)
        if (mean is None) != (std is None):
            raise ValueError("DetDataPreprocessor: give both mean and std, or neither")
        if bgr_to_rgb and rgb_to_bgr:
            raise ValueError("DetDataPreprocessor: bgr_to_rgb and rgb_to_bgr exclude each other")
        self.mean: Tensor
        self.std: Tensor
        self.normalises = mean is not None and std is not None
        if mean is not None and std is not None:
            for name, values in (("mean", mean), ("std", std)):
                if len(values) not in (1, 3):
                    raise ValueError(f"DetDataPreprocessor: {name} needs 1 or 3 numbers, got {values!r}")
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.pad_size_divisor = pad_size_divisor
        self.pad_value = pad_value
        self.pad_mask = pad_mask
        self.mask_pad_value = mask_pad_value
        self.pad_seg = pad_seg
        self.seg_pad_value = seg_pad_value
        self.swaps_channels = bgr_to_rgb or rgb_to_bgr
        self.batch_augments = nn.ModuleList(MODELS.build(augment) for augment in batch_augments or ())

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """Inputs (N, C, H, W) float32 and the data samples, on the device.

        Args:
            data: ``inputs``, a list of images (C, H, W), and ``data_samples``.
            training: Whether ``batch_augments`` apply.
        """
        images: list[Tensor] = list(data["inputs"])
        samples: list[DetDataSample] | None = data.get("data_samples")
        height, width = (self._padded(max(image.shape[axis] for image in images)) for axis in (1, 2))
        batch = self._stack(images, height, width)
        if samples is not None:
            samples = self.cast_data(samples)
            for image, sample in zip(images, samples, strict=True):
                pad_shape = (self._padded(image.shape[1]), self._padded(image.shape[2]))
                sample.set_metainfo({"batch_input_shape": (height, width), "pad_shape": pad_shape})
            if training:
                self.pad_annotations(samples, height, width)
        if training:
            for augment in self.batch_augments:
                batch, samples = augment(batch, samples)
        return {"inputs": batch, "data_samples": samples}

    def _padded(self, size: int) -> int:
        return -(-size // self.pad_size_divisor) * self.pad_size_divisor

    def _stack(self, images: list[Tensor], height: int, width: int) -> Tensor:
        """One tensor, padded before the copy so that the device gets it in one piece; then normalised."""
        first = images[0]
        # A copy from memory that may be paged out would wait.
        pinned = first.device.type == "cpu" and self.device.type == "cuda"
        shape = (len(images), first.shape[0], height, width)
        dtype = reduce(torch.promote_types, (image.dtype for image in images))
        stacked = torch.zeros(shape, dtype=dtype, device=first.device, pin_memory=pinned)
        for row, image in zip(stacked, images, strict=True):
            if image.shape[0] != len(row):
                raise ValueError(
                    f"DetDataPreprocessor: images of {len(row)} and of {image.shape[0]} channels cannot be one batch"
                )
            row[:, : image.shape[1], : image.shape[2]] = image
        batch = self.cast_data(stacked)
        if self.swaps_channels and batch.shape[1] == 3:
            batch = batch.flip(1)
        batch = batch.float()
        if self.normalises:
            batch = (batch - self.mean) / self.std
        for row, image in zip(batch, images, strict=True):
            row[:, image.shape[1] :] = self.pad_value
            row[:, :, image.shape[2] :] = self.pad_value
        return batch

    def pad_annotations(self, samples: list[DetDataSample], height: int, width: int) -> None:
        """Pad masks and semantic maps to the batch's size, where ``pad_mask`` and ``pad_seg`` say so."""
        for sample in samples:
            if self.pad_mask and "masks" in sample.gt_instances:
                sample.gt_instances.masks = sample.gt_instances.masks.pad((height, width), self.mask_pad_value)
            if self.pad_seg and "gt_sem_seg" in sample:
                seg = sample.gt_sem_seg.sem_seg
                gap = (0, width - seg.shape[-1], 0, height - seg.shape[-2])
                padded = F.pad(seg, gap, value=self.seg_pad_value)
                sample.gt_sem_seg = PixelData(metainfo=sample.gt_sem_seg.metainfo, sem_seg=padded)
