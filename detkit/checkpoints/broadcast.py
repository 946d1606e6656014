"""One process reads, all get what it read: for files that only the first machine sees, and one read instead of many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["from_rank0"]

T = TypeVar("T")
# Tensors travel together in messages of about this size.
_MESSAGE_BYTES = 64 << 20


class _Slot:
    """Where a tensor belongs."""

    def __init__(self, index: int) -> None:
        self.index = index


def from_rank0(read: Callable[[], T], group: Any = None) -> T:
    """Call ``read`` in the first process and return its result in all of them; with one process, just call it.

    Args:
        read: Gives tensors in dicts, lists and tuples beside anything that pickles; every process must call this.
        group: Process group; by default the one of all processes. Tensors arrive on the device they have in the
            first process, or on this process's GPU where that one has another number.

    Returns:
        The result of the first process.

    Raises:
        FileNotFoundError: ``read`` raised it there; all processes raise it.
        ValueError: The same.
        RuntimeError: ``read`` raised anything else there.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return read()
    is_source = dist.get_rank(group) == 0
    source = dist.get_global_rank(group, 0) if group is not None else 0
    result: Any = None
    error: Exception | None = None
    tensors: list[Tensor] = []
    if is_source:
        try:
            result = _take_out(read(), tensors)
        except Exception as raised:  # told to the others, who would wait for ever
            error = raised
    known = next((kind for kind in (FileNotFoundError, ValueError) if isinstance(error, kind)), RuntimeError)
    layout = [(tuple(t.shape), t.dtype, t.device.type) for t in tensors]
    message: list[Any] = [result, error and (known.__name__, str(error)), layout]
    dist.broadcast_object_list(message, src=source, group=group)
    result, failure, layout = message
    if error is not None:
        raise error
    if failure is not None:
        kind = {one.__name__: one for one in (FileNotFoundError, ValueError, RuntimeError)}[failure[0]]
        raise kind(failure[1])
    if not is_source:
        tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in layout]
    _broadcast_tensors(tensors, is_source, source, group)
    return _put_back(result, tensors)


def _broadcast_tensors(tensors: list[Tensor], is_source: bool, source: int, group: Any) -> None:
    """Fill ``tensors`` with those of the source, in few messages of bytes."""
    device = torch.device("cuda") if dist.get_backend(group) == "nccl" else torch.device("cpu")
    for bucket in _buckets(tensors):
        if is_source:
            flat = torch.cat([_bytes(tensor).to(device) for tensor in bucket])
        else:
            flat = torch.empty(sum(t.numel() * t.element_size() for t in bucket), dtype=torch.uint8, device=device)
        dist.broadcast(flat, src=source, group=group)
        if not is_source:
            sizes = [tensor.numel() * tensor.element_size() for tensor in bucket]
            for tensor, part in zip(bucket, flat.split(sizes), strict=True):
                _bytes(tensor).copy_(part)


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            continue
        if not buckets or size > room:
            buckets.append([])
            room = _MESSAGE_BYTES
        buckets[-1].append(tensor)
        room -= size
    return buckets


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _take_out(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value.detach())
        return _Slot(len(tensors) - 1)
    if isinstance(value, dict):
        return {key: _take_out(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_take_out(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _put_back(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_put_back(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
