"""Convolutions that torch would compute slowly on a CPU, computed otherwise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["convolved"]

# Images from which on torch takes oneDNN's convolution for kernels of one pixel, on one thread of a CPU.
MANY_IMAGES = 16
# From so many weights for a pixel of the output on (kernel and padding aside), a matrix product gives their gradient
# sooner.
MANY_WEIGHTS = 8192


def convolved(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, D, H', W') of ``x`` (N, C, H, W), with weights and bias instead of the layer's own."""
    if _is_plain_on_cpu(conv, x):
        if bias is not None and _goes_by_rows(conv, x):
            return _ConvolvedRows.apply(x, weight, bias)
        if _has_few_pixels(conv, x, weight):
            return _ConvolvedFewPixels.apply(x, weight, bias, *conv.stride, *conv.padding)
    return conv._conv_forward(x, weight, bias)


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


class _ConvolvedFewPixels(torch.autograd.Function):
    """A convolution whose weights' gradient is the product of its maps' gradient and what each output saw.

    torch computes that gradient in a layout of its own and copies it into the weights', which takes as long as the
    products of some hundred pixels.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *layout: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layout = layout
        return torch.conv2d(x, weight, bias, layout[:2], layout[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        layout = ctx.layout[:2], ctx.layout[2:], (1, 1), False, (0, 0), 1
        wanted = [ctx.needs_input_grad[0], False, False]
        of_x, _, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *layout, wanted)
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return of_x, _weight_grad(grad, x, weight, *ctx.layout), of_bias, *(None for _ in ctx.layout)


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, *layout: int) -> Tensor:
    """(D, C, k, l) of ``grad`` (N, D, H', W') and ``x`` (N, C, H, W)."""
    down, right, above, left = layout
    number, outputs, height, width = grad.shape
    _, inputs, *kernel = weight.shape
    padded = F.pad(x, (left, left, above, above)).permute(0, 2, 3, 1).contiguous()
    of_image, of_row, of_pixel, of_channel = padded.stride()
    strides = of_image, down * of_row, right * of_pixel, of_row, of_pixel, of_channel
    seen = padded.as_strided((number, height, width, *kernel, inputs), strides).reshape(number * height * width, -1)
    product = grad.permute(0, 2, 3, 1).reshape(-1, outputs).t() @ seen
    return product.view(outputs, *kernel, inputs).permute(0, 3, 1, 2)


def _as_rows(x: Tensor) -> Tensor:
    number, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).view(number * height, 1, width, channels).permute(0, 3, 1, 2)


def _as_maps(rows: Tensor, like: Tensor) -> Tensor:
    number, _, height, width = like.shape
    return rows.permute(0, 2, 3, 1).reshape(number, height, width, -1).permute(0, 3, 1, 2)


def _is_plain_on_cpu(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        # torch.func's transforms take no functions of one's own like these.
        and torch._C._functorch.peek_interpreter_stack() is None
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _goes_by_rows(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether pixels of ``x`` do not meet, and torch would be slow with it.

    On one thread torch leaves kernels of one pixel to a loop over the images, unless there are many of them. Rows of
    pixels are as good as images, and the same memory.
    """
    number, _, height, _ = x.shape
    return (
        conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and number < MANY_IMAGES <= number * height
        and torch.get_num_threads() == 1
    )


def _has_few_pixels(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> bool:
    """Whether the weights learn, and outnumber what they see by far."""
    number, _, height, width = x.shape
    down, right = conv.stride
    return (
        conv.kernel_size != (1, 1)
        and conv.dilation == (1, 1)
        and not isinstance(conv.padding, str)
        and weight.requires_grad
        and torch.is_grad_enabled()
        and weight.dtype == torch.float32
        and weight.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > 0
        and weight.numel() >= MANY_WEIGHTS * number * -(-height // down) * -(-width // right)
    )
