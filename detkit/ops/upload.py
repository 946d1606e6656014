"""From the host to a device without waiting for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["upload"]


def upload(values: NDArray | Tensor, device: torch.device) -> Tensor:
    """An array, or a tensor on the host, on a device; to a GPU by pinned memory, as a copy from other memory waits."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
