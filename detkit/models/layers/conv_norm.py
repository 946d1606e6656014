"""A convolution and the batch norm behind it, in one piece where the norm's statistics are fixed."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import Tensor, nn

from detkit.models.layers.cpu_convolution import convolved

__all__ = ["ConvNormShortcut", "conv_norm", "has_hooks"]

# ``SyncBN`` of a config is a subclass that adds nothing.
FOLDABLE_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm)
FOLDABLE_DTYPES = (torch.float32, torch.float64)


def conv_norm(conv: Any, norm: Any, x: Tensor) -> Tensor:
    """``norm(conv(x))``; one convolution where ``norm`` is a batch norm with fixed statistics.

    Fixed statistics make the norm a scale and a shift of each channel: the weights are scaled instead of the maps, and
    the shift is the bias. Gradients reach the weights and, where they learn, the norm's scale and shift. Called as they
    are: anything but these two plain layers, a layer with hooks, and layers of more weights than their map has values.

    Args:
        conv: Convolution of ``x``.
        norm: Its norm.
        x: (N, C, H, W).

    Returns:
        (N, D, H', W').
    """
    if not _folds(conv, norm, x):
        return norm(convolved(conv, x, conv.weight, conv.bias) if _is_plain(conv, x) else conv(x))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return convolved(conv, x, conv.weight * scale.view(-1, 1, 1, 1), shift)


class ConvNormShortcut(nn.Sequential):
    """Layers of which the last two are a convolution and its norm; see :func:`conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H', W') of ``x`` (N, C, H, W)."""
        *before, conv, norm = self
        for layer in before:
            x = layer(x)
        return conv_norm(conv, norm, x)


def _folds(conv: Any, norm: Any, x: Tensor) -> bool:
    return (
        _is_plain(conv, x)
        and type(norm) in FOLDABLE_NORMS
        and not norm.training
        and norm.running_var is not None
        and norm.weight is not None
        # In half precision the scaled weights would be rounded twice; autocast rounds them once.
        and conv.weight.dtype == norm.weight.dtype
        and conv.weight.dtype in FOLDABLE_DTYPES
        and not has_hooks(norm)
        and _weights_of_output(conv) < x.shape[0] * x.shape[2] * x.shape[3]
    )


def _is_plain(conv: Any, x: Tensor) -> bool:
    # A subclass may compute something else, as may what stands in for a method; a trace would keep today's weights.
    plain = type(conv) is nn.Conv2d and "forward" not in conv.__dict__
    return plain and not has_hooks(conv) and not isinstance(x, torch.fx.Proxy)


def _weights_of_output(conv: nn.Conv2d) -> int:
    """Weights of an output channel, times how many values of the input's map make one of the output's."""
    height, width = conv.kernel_size
    return conv.in_channels // conv.groups * height * width * conv.stride[0] * conv.stride[1]


def has_hooks(layer: nn.Module) -> bool:
    """Whether somebody wants to see a call of the layer, which therefore must be called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
