"""In which precision boxes and losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["full_precision"]


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half-precision floats as float32; everything else unchanged.

    Enough under autocast too, which lowers no operation that losses and boxes use.
    """
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)
