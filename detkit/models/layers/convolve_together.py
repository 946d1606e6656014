"""Several convolutions of the same maps at the cost of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkit.models.layers.conv_norm import has_hooks

__all__ = ["convolve_together"]


def convolve_together(layers: Sequence[Any], maps: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """What each of ``layers`` makes of each of ``maps`` (N, C, H_i, W_i): a tuple for each map.

    Convolutions of a few channels take as long as one of all their channels. Layers that are anything but plain
    convolutions of one kind, or have hooks, are called as they are.
    """
    first, *others = layers
    if not others or not all(_is_plain(layer) and _kind(layer) == _kind(first) for layer in layers):
        return [tuple(layer(one) for layer in layers) for one in maps]
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    counts = [layer.out_channels for layer in layers]
    return [first._conv_forward(one, weight, bias).split(counts, dim=1) for one in maps]


def _is_plain(layer: Any) -> bool:
    return type(layer) is nn.Conv2d and layer.bias is not None and layer.groups == 1 and not has_hooks(layer)


def _kind(layer: Any) -> tuple[object, ...]:
    return layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode
