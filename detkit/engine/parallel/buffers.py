"""Buffers that each process updates from its own batches, made equal before anyone evaluates or saves them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _NormBase

from detkit.engine.distributed import get_world_size

__all__ = ["sync_buffers"]


@torch.no_grad()
def sync_buffers(model: nn.Module) -> None:
    """Give every process the same buffers: means of running statistics, the first process's of all others.

    Every process must call it. Equal statistics stay as they are, to the bit.

    Args:
        model: The same on every process.
    """
    world = get_world_size()
    if world == 1:
        return
    statistics: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, _NormBase):
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None:
                    statistics[id(statistic)] = statistic
    others = [buffer for buffer in model.buffers() if id(buffer) not in statistics]
    for flat, parts in _joined(statistics.values(), torch.float64):
        distributed.all_reduce(flat)
        flat /= world
        _write_back(flat, parts)
    for flat, parts in _joined(others):
        distributed.broadcast(flat, src=0)
        _write_back(flat, parts)


def _joined(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> Iterable[tuple[Tensor, list[Tensor]]]:
    """One flat copy of all tensors of a kind, so that a collective is called once for them."""
    kinds: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if tensor.numel():
            kinds[tensor.device, dtype or tensor.dtype].append(tensor)
    for (_, wanted), parts in kinds.items():
        # NCCL knows no bool.
        kind = torch.uint8 if wanted is torch.bool else wanted
        yield torch.cat([part.to(kind).flatten() for part in parts]), parts


def _write_back(flat: Tensor, parts: list[Tensor]) -> None:
    for part, new in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
        part.copy_(new.view_as(part))
