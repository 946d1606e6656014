"""A mode that counts what brings values of tensors to the host, on any device."""

from __future__ import annotations

from collections import Counter

from torch.overrides import TorchFunctionMode

READS = {"cpu", "numpy", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__"}


class HostReads(TorchFunctionMode):
    """``counts`` has each reading call by name, and ``to`` for moves to a device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        moves = name == "to" and any(hasattr(value, "type") and hasattr(value, "index") for value in args[1:2])
        if name in READS or moves or ("device" in kwargs and name == "to"):
            self.counts[name] += 1
        return func(*args, **kwargs)
