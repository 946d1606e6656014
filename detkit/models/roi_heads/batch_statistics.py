"""Batch norms of a head look at regions, not at the padding beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detkit.models.roi_heads.sampling import SampledRoIs

__all__ = ["outputs_of_sampled"]


def outputs_of_sampled(
    forward: Callable[[Tensor], Mapping[str, Any]], layers: Iterable[nn.Module], sampled: SampledRoIs
) -> dict[str, Any]:
    """Outputs for the N * R sampled RoIs, by a head to which each region is alone, but for batch norms in training.

    Where the head has some, padding is left out, so that no statistics are of it; its outputs are zeros. Which rows
    these are must be known on the host then: each such head, of a cascade that of each stage, waits once in a step.

    Args:
        forward: Outputs by name for RoIs (K, 5): a tensor (K, ...), a tuple of such, or None.
        layers: What runs in ``forward`` on regions, looked through for batch norms: RoI extractor and heads.
        sampled: R regions of each of N images.
    """
    rois = sampled.rois
    inner = (layer for module in layers for layer in module.modules())
    if not any(isinstance(layer, _BatchNorm) and layer.training for layer in inner):
        return dict(forward(rois))
    rows = sampled.valid.flatten().nonzero().squeeze(1)
    if len(rows) == len(rois):
        return dict(forward(rois))
    return {name: _with_padding(value, rows, len(rois)) for name, value in forward(rois[rows]).items()}


def _with_padding(value: Any, rows: Tensor, count: int) -> Any:
    if isinstance(value, Tensor):
        return value.new_zeros(1, *value.shape[1:]).expand(count, *value.shape[1:]).index_copy(0, rows, value)
    return None if value is None else tuple(_with_padding(part, rows, count) for part in value)
