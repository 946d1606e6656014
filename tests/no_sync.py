"""A mode that fails on every operation for which a GPU would make the host wait."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
FORBIDDEN = {
    aten._local_scalar_dense,
    aten.item,
    aten.nonzero,
    aten.bincount,
    aten.masked_select,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.is_nonzero,
    aten.equal,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}


class NoSync(TorchDispatchMode):
    """Raises AssertionError on scalar reads, data-dependent shapes, mask indexing and copies that wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        assert packet not in FORBIDDEN, f"{func} waits for the device"
        if packet in INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} with a mask waits for the device"
        if packet is aten.repeat_interleave:
            assert kwargs.get("output_size") is not None, f"{func} without output_size waits for the device"
        if packet is aten._to_copy:
            source = args[0].device
            target = torch.device(kwargs.get("device") or source)
            assert target.type != "cpu" or source.type == "cpu", f"{func} copies to the host"
            waits = source.type == "cpu" and target.type == "cuda" and not kwargs.get("non_blocking")
            assert not waits, f"{func} copies from the host and waits"
        return func(*args, **kwargs)
