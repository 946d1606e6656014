"""From the mask of a box to the mask of an image (Mask R-CNN, https://arxiv.org/abs/1703.06870, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detkit.structures.masks.run_lengths import encode_window

__all__ = ["encode_masks", "paste_masks"]

# Pixels that are held as float32 at once: 64 MB.
CHUNK_PIXELS = 2**24


@torch.no_grad()
def paste_masks(masks: Tensor, boxes: Tensor, shape: tuple[int, int], threshold: float) -> Tensor:
    """Masks (D, H, W) of an image, bool.

    Pixels are interpolated from the four nearest cells; beyond the box there are zeros. Only some are held as floats
    at a time.

    Args:
        masks: Probabilities (D, h, w) of the cells of each box.
        boxes: (D, 4) in the image.
        shape: (H, W) of the image.
        threshold: Probability from which a pixel is of the object; a negative number returns the probabilities,
            times 255, as uint8.
    """
    pasted = masks.new_zeros(len(masks), *shape, dtype=torch.bool if threshold >= 0 else torch.uint8)
    # A device is better busy with whole images than asked where the boxes are.
    paste = _paste_windows if boxes.device.type == "cpu" else _paste_images
    paste(pasted, masks, boxes, threshold)
    return pasted


def _paste_windows(pasted: Tensor, masks: Tensor, boxes: Tensor, threshold: float) -> None:
    for number, (left, top, right, bottom) in enumerate(_windows(boxes, masks, pasted.shape[1:])):
        one = slice(number, number + 1)
        for rows in _row_blocks(top, bottom, right - left):
            window = _interpolate(masks[one], boxes[one], rows, (left, right))
            pasted[one, rows[0] : rows[1], left:right] = _threshold(window, threshold)


def _paste_images(pasted: Tensor, masks: Tensor, boxes: Tensor, threshold: float) -> None:
    height, width = pasted.shape[1:]
    for rows in _row_blocks(0, height, width):
        count = max(1, CHUNK_PIXELS // max((rows[1] - rows[0]) * width, 1))
        for first in range(0, len(masks), count):
            some = slice(first, first + count)
            image = _interpolate(masks[some], boxes[some], rows, (0, width))
            pasted[some, rows[0] : rows[1]] = _threshold(image, threshold)


@torch.no_grad()
def encode_masks(masks: Tensor, boxes: Tensor, shape: tuple[int, int], threshold: float) -> list[dict[str, Any]]:
    """The same masks as compressed run lengths, for COCO's metric; arguments as of :func:`paste_masks`.

    They are pasted on the host, one at a time and around its box only, so that neither the device nor the host holds
    an image for each of them.
    """
    masks, boxes = masks.cpu(), boxes.cpu()
    found = []
    for number, (left, top, right, bottom) in enumerate(_windows(boxes, masks, shape)):
        one = slice(number, number + 1)
        blocks = [
            _interpolate(masks[one], boxes[one], rows, (left, right))[0] >= threshold
            for rows in _row_blocks(top, bottom, right - left)
        ]
        window = torch.cat(blocks).numpy() if blocks else np.zeros((0, right - left), dtype=bool)
        found.append(encode_window(window, top, left, shape))
    return found


def _windows(boxes: Tensor, masks: Tensor, shape: Sequence[int]) -> NDArray[np.int64]:
    """Pixels (D, 4), left, top, right, bottom, that each mask reaches: half a cell beyond its box."""
    height, width = shape
    cells = torch.tensor([masks.shape[2], masks.shape[1]])
    reach = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0) / (2 * cells)
    first, last = (boxes[:, :2] - reach).floor() - 1, (boxes[:, 2:] + reach).ceil() + 1
    limit = np.array([width, height] * 2)
    return torch.cat([first, last], dim=1).double().nan_to_num().numpy().clip(0, limit).astype(np.int64)


def _row_blocks(top: int, bottom: int, width: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks that fit into a chunk."""
    step = max(1, CHUNK_PIXELS // max(width, 1))
    for first in range(top, bottom, step):
        yield first, min(first + step, bottom)


def _threshold(probabilities: Tensor, threshold: float) -> Tensor:
    return probabilities >= threshold if threshold >= 0 else (probabilities * 255).to(torch.uint8)


def _interpolate(masks: Tensor, boxes: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Probabilities (D, rows, columns), float32; bilinear interpolation is a product over both axes."""
    with torch.autocast(masks.device.type, enabled=False):
        along_y = _cell_weights(boxes[:, 1], boxes[:, 3], rows, masks.shape[1])
        along_x = _cell_weights(boxes[:, 0], boxes[:, 2], columns, masks.shape[2])
        return along_y @ masks.float() @ along_x.transpose(1, 2)


def _cell_weights(start: Tensor, end: Tensor, pixels: tuple[int, int], cells: int) -> Tensor:
    """What each cell of an interval gives to each pixel: (D, pixels, cells)."""
    centre = torch.arange(*pixels, device=start.device, dtype=torch.float32) + 0.5
    start, length = start.float().unsqueeze(1), (end - start).float().unsqueeze(1)
    # Where a box has no length its mask has no place, and the pixels are far away.
    at = (centre - start) / length.clamp(min=1e-6) * cells - 0.5
    return (1 - (at.unsqueeze(2) - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
