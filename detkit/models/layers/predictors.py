"""Last layers of a head, by name: plain, or with normalised weights and inputs (Seesaw loss,
https://arxiv.org/abs/2008.10032, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.registry import MODELS

__all__ = ["NormedConv2d", "NormedLinear", "conv_predictor", "linear_predictor"]

MODELS.register_module("Linear", module=nn.Linear)


def linear_predictor(cfg: Mapping[str, Any] | None, in_features: int, out_features: int) -> nn.Module:
    """The layer that ``cfg`` names, a ``Linear`` by default, of this size."""
    return MODELS.build({**(cfg or {"type": "Linear"}), "in_features": in_features, "out_features": out_features})


def conv_predictor(cfg: Mapping[str, Any] | None, in_channels: int, out_channels: int) -> nn.Module:
    """The 1x1 convolution that ``cfg`` names, a ``Conv`` by default, of these channels."""
    size = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": 1}
    return MODELS.build({**(cfg or {"type": "Conv"}), **size})


@MODELS.register_module()
class NormedLinear(nn.Linear):
    """A linear layer over directions: weights and inputs are divided by their norms.

    Args:
        in_features: Of the input.
        out_features: Of the output.
        bias: Add a bias.
        tempearture: Factor on the normalised input; MMDetection spells it so.
        power: Exponent of both norms.
        eps: Added to both norms.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        tempearture: float = 20,
        power: float = 1.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.tempearture = tempearture
        self.power = power
        self.eps = eps
        self.init_weights()

    def init_weights(self) -> None:
        """Weights of a normal distribution, biases 0."""
        nn.init.normal_(self.weight, std=0.01)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., out_features) of (..., in_features)."""
        weight = _direction(self.weight, self.power, self.eps)
        return F.linear(_direction(x, self.power, self.eps) * self.tempearture, weight, self.bias)


@MODELS.register_module()
class NormedConv2d(nn.Conv2d):
    """A convolution over directions: weights and inputs are divided by their norms over the channels.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: Of the kernel.
        stride: Of the kernel.
        padding: Zeros around the input.
        dilation: Of the kernel.
        groups: Of the channels.
        bias: Add a bias.
        tempearture: Factor on the normalised input; MMDetection spells it so.
        power: Exponent of both norms.
        eps: Added to both norms.
        norm_over_kernel: Take the norm of a weight over its kernel too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        tempearture: float = 20,
        power: float = 1.0,
        eps: float = 1e-6,
        norm_over_kernel: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.tempearture = tempearture
        self.power = power
        self.eps = eps
        self.norm_over_kernel = norm_over_kernel

    def forward(self, x: Tensor) -> Tensor:
        """(N, out_channels, H', W') of (N, in_channels, H, W)."""
        weight = self.weight.flatten(1) if self.norm_over_kernel else self.weight
        weight = _direction(weight, self.power, self.eps).view_as(self.weight)
        x = _direction(x, self.power, self.eps) * self.tempearture
        return self._conv_forward(x, weight, self.bias)


def _direction(x: Tensor, power: float, eps: float) -> Tensor:
    """``x`` over its norm along the second axis."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True).pow(power) + eps)
