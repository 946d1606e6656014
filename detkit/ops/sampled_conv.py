"""Deformable convolution as bilinear sampling and a matrix product, for the CPU.

torchvision's kernel runs there on one thread, and looks at 25 neighbours of a tap to find the four whose gradient it
moves: the backward pass of this one takes a seventh of its time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sampled_conv2d"]

Pair = tuple[int, int]


def sampled_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,
) -> Tensor:
    """As ``torchvision.ops.deform_conv2d``; arguments as there, of one float type.

    Args:
        x: (N, C, H, W).
        offset: (N, 2 * deform_groups * taps, H', W').
        weight: (C', C / groups, kh, kw).
        bias: (C',).
        stride: Of both axes.
        padding: Of both axes.
        dilation: Of both axes.
        mask: (N, deform_groups * taps, H', W').

    Returns:
        (N, C', H', W').
    """
    (batch, channels, height, width), (rows, columns) = x.shape, offset.shape[2:]
    taps = weight.shape[2] * weight.shape[3]
    parts = offset.shape[1] // (2 * taps)  # groups of channels with offsets of their own
    places = rows * columns
    moved = offset.reshape(batch * parts, taps, 2, rows, columns)
    tap = torch.arange(taps, device=x.device).view(taps, 1, 1)
    row = torch.arange(rows, device=x.device).view(rows, 1) * stride[0] - padding[0]
    column = torch.arange(columns, device=x.device) * stride[1] - padding[1]
    y = moved[:, :, 0] + (tap // weight.shape[3] * dilation[0] + row)
    place = moved[:, :, 1] + (tap % weight.shape[3] * dilation[1] + column)
    # grid_sample counts from -1 to 1 over the outer edges of the image; beyond, there are zeros.
    grid = torch.stack([(2 * place + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    seen = F.grid_sample(
        x.reshape(batch * parts, channels // parts, height, width),
        grid.view(batch * parts, taps * rows, columns, 2),
        align_corners=False,
    ).reshape(batch * parts, channels // parts, taps, places)
    if mask is not None:
        seen = seen * mask.reshape(batch * parts, 1, taps, places)
    groups = channels // weight.shape[1]
    seen = seen.reshape(batch, groups, weight.shape[1] * taps, places)
    out = (weight.reshape(groups, -1, weight.shape[1] * taps) @ seen).reshape(batch, weight.shape[0], rows, columns)
    return out if bias is None else out + bias.view(-1, 1, 1)
