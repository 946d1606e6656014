"""The safetensors format, https://github.com/huggingface/safetensors#format: a JSON table, then the bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["load_safetensors"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; they share its bytes in memory.

    Raises:
        ValueError: The table does not fit the bytes, as in a truncated file, or names a dtype that torch lacks.
    """
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    if start > len(content):
        raise ValueError("its table of contents is cut off")
    table = json.loads(content[8:start])
    table.pop("__metadata__", None)
    return {name: _tensor(content, start, name, **entry) for name, entry in table.items()}


def _tensor(
    content: bytearray, start: int, name: str, dtype: str, shape: list[int], data_offsets: tuple[int, int]
) -> Tensor:
    if dtype not in _DTYPES:
        raise ValueError(f"{name} has the dtype {dtype}, which torch does not know")
    kind = _DTYPES[dtype]
    begin, end = data_offsets
    if end - begin != math.prod(shape) * kind.itemsize or not 0 <= begin <= end <= len(content) - start:
        raise ValueError(f"{name} is cut off: bytes {begin} to {end} of {len(content) - start}")
    if begin == end:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(content, dtype=torch.uint8, count=end - begin, offset=start + begin).view(kind).view(shape)
