"""Norm of each pixel with a learnt scale, Liu et al., https://arxiv.org/abs/1506.04579, as in SSD."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["L2Norm"]


class L2Norm(nn.Module):
    """Scales each pixel's channels to length one, then each channel by a learnt number.

    Args:
        channels: Their number.
        scale: What the numbers start at.
        eps: Added to the length.
    """

    def __init__(self, channels: int, scale: float = 20.0, eps: float = 1e-10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) as ``x``, in its type; computed in float32."""
        values = x.float()
        # The length's derivative at zero is zero here; that of a root would be infinite.
        length = torch.linalg.vector_norm(values, dim=1, keepdim=True) + self.eps
        return (self.weight.float()[:, None, None] * values / length).type_as(x)
