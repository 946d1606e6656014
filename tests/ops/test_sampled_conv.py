"""Deformable convolution by sampling: torchvision's values and gradients."""

import pytest
import torch
import torchvision

from detkit.ops.sampled_conv import sampled_conv2d


@pytest.mark.parametrize(
    ("size", "kernel", "groups", "parts", "stride", "padding", "dilation"),
    [
        ((7, 5), (3, 3), 1, 1, (1, 1), (1, 1), (1, 1)),
        ((8, 6), (3, 3), 2, 4, (2, 2), (1, 1), (1, 1)),
        ((9, 9), (3, 1), 4, 1, (1, 2), (2, 0), (2, 1)),
        ((1, 4), (1, 1), 4, 4, (1, 1), (0, 0), (1, 1)),
        ((1, 1), (3, 3), 1, 2, (1, 1), (1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reach", [0.3, 5.0])
def test_values_and_gradients(size, kernel, groups, parts, stride, padding, dilation, masked, reach):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    taps = kernel[0] * kernel[1]
    x, weight, bias = draw(2, 8, *size), draw(4, 8 // groups, *kernel), draw(4)
    offset = (draw(2, 2 * parts * taps, *out) * reach).detach().requires_grad_()
    mask = draw(2, parts * taps, *out) if masked else None
    inputs = [part for part in (x, offset, weight, bias, mask) if part is not None]
    expected = torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
    actual = sampled_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)
    torch.testing.assert_close(actual, expected)
    weights = draw(*expected.shape).detach()
    for own, wanted in zip(
        torch.autograd.grad((actual * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, wanted)


def test_channels_last():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, 8, 5, 5, generator=generator), torch.randn(4, 8, 3, 3, generator=generator))
    offset = torch.randn(2, 18, 5, 5, generator=generator)
    settings = (None, (1, 1), (1, 1), (1, 1), None)
    last = [part.contiguous(memory_format=torch.channels_last).requires_grad_() for part in (x, offset, weight)]
    out = sampled_conv2d(*last, *settings)
    torch.testing.assert_close(out, sampled_conv2d(x, offset, weight, *settings))
    out.sum().backward()
