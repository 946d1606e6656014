"""Convolutions in another shape of the same memory: values, gradients and layouts are those of torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from detkit.models.layers import conv_norm, cpu_convolution


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("number", "layout", "count", "by_rows"),
    [
        (1, torch.channels_last, 2, True),
        (2, torch.channels_last, 1, False),  # twelve rows are too few
        (1, torch.channels_last, 16, False),
        (1, torch.contiguous_format, 2, False),
        (2, torch.channels_last, 2, False),
    ],
)
def test_on_one_thread_kernels_of_one_pixel_go_by_rows(number, layout, count, by_rows, threads):
    threads(number)
    torch.manual_seed(0)
    seen = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is nn.functional.conv2d:
                seen.append(args[0].shape[0])
            return function(*args, **(kwargs or {}))

    conv, norm = nn.Conv2d(5, 6, 1, bias=False), nn.BatchNorm2d(6).eval()
    x = torch.randn(count, 5, 12, 7).to(memory_format=layout).requires_grad_()
    expected = norm(conv(x)).relu()
    with Spy():
        found = conv_norm(conv, norm, x).relu_()  # what it gives may be changed in place
    assert seen == [count * 12 if by_rows else count]
    assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)
    leaves, weights = (x, *conv.parameters(), *norm.parameters()), torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    assert_close(torch.autograd.grad((found * weights).sum(), leaves), wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def products(monkeypatch):
    """Weights' gradients that were products; from six weights for a pixel on."""
    made = []
    original = cpu_convolution._weight_grad
    monkeypatch.setattr(cpu_convolution, "_weight_grad", lambda *args: made.append(1) or original(*args))
    monkeypatch.setattr(cpu_convolution, "MANY_WEIGHTS", 6)
    return made


def gradients(conv, norm, x, by):
    torch.manual_seed(1)
    out = by(conv, norm, x)
    leaves = [leaf for leaf in (x, *conv.parameters()) if leaf.requires_grad]
    return out, torch.autograd.grad((out * torch.randn_like(out)).sum(), leaves)


@pytest.mark.parametrize(
    ("kernel", "layout"),
    [(3, {"padding": 1}), (3, {"padding": 1, "stride": 2}), ((3, 2), {"padding": (1, 0), "stride": (1, 2)}), (5, {})],
)
@pytest.mark.parametrize("first", [False, True])
def test_of_few_pixels_the_weights_gradient_is_a_product(kernel, layout, first, products):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(6, 4, kernel, bias=first, **layout).to(memory_format=torch.channels_last), nn.BatchNorm2d(4)
    x = torch.randn(2, 6, 4, 3).repeat(1, 1, 2, 2) if kernel == 5 else torch.randn(2, 6, 4, 3)
    x = x[..., :6, :5].to(memory_format=torch.channels_last).requires_grad_(not first)
    wanted, wanted_grads = gradients(conv, norm, x, lambda conv, norm, x: norm(conv(x)))
    assert not products
    found, grads = gradients(conv, norm, x, conv_norm)
    assert products == [1]
    assert_close(found, wanted)
    assert_close(grads, wanted_grads, rtol=1e-4, atol=1e-5)
    assert grads[0 if first else 1].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change",
    [
        lambda conv, x: (conv, torch.cat([x, x])),  # 48 pixels
        lambda conv, x: (nn.Conv2d(6, 1, 3, padding=1, bias=False), x),  # 54 weights
        lambda conv, x: (conv, x.contiguous()),
        lambda conv, x: (nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False), x),
        lambda conv, x: (nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False), x),
        lambda conv, x: (nn.Conv2d(6, 4, 3, padding="same", bias=False), x),
        lambda conv, x: (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect", bias=False), x),
        lambda conv, x: (conv.double(), x.double()),
    ],
    ids=["pixels", "weights", "layout", "dilation", "groups", "same", "reflect", "float64"],
)
def test_else_torch_computes_it(change, products):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 3).to(memory_format=torch.channels_last)
    conv, x = change(nn.Conv2d(6, 4, 3, padding=1, bias=False), x)
    conv, norm = conv.to(memory_format=torch.channels_last), nn.BatchNorm2d(conv.out_channels).to(x.dtype)
    wanted, wanted_grads = gradients(conv, norm, x.requires_grad_(), lambda conv, norm, x: norm(conv(x)))
    found, grads = gradients(conv, norm, x, conv_norm)
    assert not products
    assert_close((found, *grads), (wanted, *wanted_grads))


def few_pixels():
    """A convolution, a norm and maps that go by a product."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    return conv, nn.BatchNorm2d(4).eval(), torch.randn(2, 6, 4, 3).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("part", ["frozen", "no gradients", "layout of the weights", "autocast", "torch.func"])
def test_nothing_else_has_a_gradient_of_its_own(part, products, monkeypatch):
    conv, norm, x = few_pixels()
    # The norm is not folded, as the weights are more than the map.
    called = []
    original = cpu_convolution._ConvolvedFewPixels.apply
    monkeypatch.setattr(cpu_convolution._ConvolvedFewPixels, "apply", lambda *args: called.append(1) or original(*args))
    conv_norm(conv, norm, x)
    assert called == [1]
    expected = norm(conv(x))
    if part == "frozen":
        conv.requires_grad_(False)
    elif part == "layout of the weights":
        conv = conv.to(memory_format=torch.contiguous_format)
    if part == "torch.func":
        weights = dict(conv.named_parameters())

        def total(weights, x):
            return norm(torch.func.functional_call(conv, weights, x)).sum()

        def ours(weights, x):
            return conv_norm_with(conv, norm, weights, x).sum()

        assert_close(torch.func.grad(ours)(weights, x), torch.func.grad(total)(weights, x))
    else:
        with torch.autocast("cpu", torch.bfloat16, enabled=part == "autocast"), torch.set_grad_enabled(part[0] != "n"):
            found = conv_norm(conv, norm, x)
        tolerance = {"rtol": 5e-2, "atol": 5e-2} if part == "autocast" else {}
        assert_close(found.float(), expected, **tolerance)
    assert called == [1]


def conv_norm_with(conv, norm, weights, x):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv, norm

        def forward(self, x):
            return conv_norm(self.conv, self.norm, x)

    return torch.func.functional_call(Both(), {f"conv.{name}": value for name, value in weights.items()}, x)


def test_no_images_have_a_gradient_of_zero(products):
    conv, norm, x = few_pixels()
    conv_norm(conv, norm, x[:0]).sum().backward()
    assert conv.weight.grad.abs().sum() == 0
