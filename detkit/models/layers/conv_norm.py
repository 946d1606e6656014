"""A convolution and the batch norm behind it, in one piece where the norm's statistics are fixed."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from mmengine.utils.dl_utils.parrots_wrapper import SyncBatchNorm
from torch import Tensor, nn

__all__ = ["ConvNormShortcut", "conv_norm", "has_hooks"]

# ``SyncBN`` of a config is a subclass that adds nothing.
FOLDABLE_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm)
FOLDABLE_DTYPES = (torch.float32, torch.float64)
# Images from which on torch takes oneDNN's convolution for kernels of one pixel, on one thread of a CPU.
MANY_IMAGES = 16


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
    if isinstance(x, torch.fx.Proxy) or not _folds(conv, norm, x):  # a trace would keep the weights of its moment
        return norm(conv(x))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return _convolved(conv, x, conv.weight * scale.view(-1, 1, 1, 1), shift)


class ConvNormShortcut(nn.Sequential):
    """Layers of which the last two are a convolution and its norm; see :func:`conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, H', W') of ``x`` (N, C, H, W)."""
        *before, conv, norm = self
        for layer in before:
            x = layer(x)
        return conv_norm(conv, norm, x)


def _convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, D, H', W') of ``x`` (N, C, H, W), with weights and bias instead of the layer's own."""
    if not _goes_by_rows(conv, x):
        return conv._conv_forward(x, weight, bias)
    return _ConvolvedRows.apply(x, weight, bias)


class _ConvolvedRows(torch.autograd.Function):
    """A convolution of one pixel with rows of pixels (N * H, C, 1, W) for images: another shape of the same memory.

    What it returns is no view, so that what follows may change it in place at no cost.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = _as_maps(torch.conv2d(_as_rows(x), weight, bias), x)
        return x.new_empty(0).set_(out.untyped_storage(), out.storage_offset(), out.shape, out.stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        layout = (1, 1), (0, 0), (1, 1), False, (0, 0), 1
        wanted = list(ctx.needs_input_grad)
        of_rows, of_weight, of_bias = torch.ops.aten.convolution_backward(
            _as_rows(grad), _as_rows(x), weight, [len(weight)], *layout, wanted
        )
        return None if of_rows is None else _as_maps(of_rows, x), of_weight, of_bias


def _as_rows(x: Tensor) -> Tensor:
    number, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(number * height, 1, width, channels).permute(0, 3, 1, 2)


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    number, _, height, width = like.shape
    return rows.permute(0, 2, 3, 1).reshape(number, height, width, -1).permute(0, 3, 1, 2)


def _goes_by_rows(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether pixels of ``x`` do not meet, and torch would be slow with it.

    On one thread torch leaves kernels of one pixel to a loop over the images, unless there are many of them. Rows of
    pixels are as good as images, and the same memory.
    """
    number, _, height, _ = x.shape
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
        and number < MANY_IMAGES <= number * height
        and x.is_contiguous(memory_format=torch.channels_last)
        and torch.get_num_threads() == 1
    )


def _folds(conv: Any, norm: Any, x: Tensor) -> bool:
    # A subclass may compute something else.
    plain = type(conv) is nn.Conv2d and type(norm) in FOLDABLE_NORMS
    return (
        plain
        and not norm.training
        and norm.running_var is not None
        and norm.weight is not None
        # In half precision the scaled weights would be rounded twice; autocast rounds them once.
        and conv.weight.dtype == norm.weight.dtype
        and conv.weight.dtype in FOLDABLE_DTYPES
        and not (has_hooks(conv) or has_hooks(norm))
        and _weights_of_output(conv) < x.shape[0] * x.shape[2] * x.shape[3]
    )


def _weights_of_output(conv: nn.Conv2d) -> int:
    """Weights of an output channel, times how many values of the input's map make one of the output's."""
    height, width = conv.kernel_size
    return conv.in_channels // conv.groups * height * width * conv.stride[0] * conv.stride[1]


def has_hooks(layer: nn.Module) -> bool:
    """Whether somebody wants to see a call of the layer, which therefore must be called."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
