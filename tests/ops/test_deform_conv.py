"""Deformable convolutions: what the taps read, gradients, precision, and the layers that configs name."""

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import initialize, normal_init
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn import functional as F

from detkit.ops import DeformConv2d, ModulatedDeformConv2d, deform_conv2d


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), (1, 2, 2)])
def test_without_offsets_it_is_a_convolution(groups, deform_groups, stride, padding, dilation):
    layer = DeformConv2d(4, 6, 3, stride, padding, dilation, groups, deform_groups)
    x = draw(2, 4, 8, 9)
    expected = F.conv2d(x, layer.weight, None, stride, padding, dilation, groups)
    offset = torch.zeros(2, deform_groups * 18, *expected.shape[-2:])
    torch.testing.assert_close(layer(x, offset), expected)


def test_offsets_are_y_then_x_per_tap():
    """A kernel of one tap that reads the pixel below, half a pixel to the right, and outside the image 0."""
    x = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]]])
    offset = torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1).expand(1, 2, 2, 3)
    out = deform_conv2d(x, offset, torch.ones(1, 1, 1, 1))
    assert out.tolist() == [[[[4.5, 5.5, 3], [0, 0, 0]]]]


def test_a_mask_weighs_the_taps():
    layer = ModulatedDeformConv2d(2, 3, 3, padding=1, bias=False)
    x = draw(1, 2, 5, 5)
    mask = torch.zeros(1, 9, 5, 5)
    mask[:, 4] = 0.25  # the middle of the kernel
    expected = F.conv2d(x, layer.weight[..., 1:2, 1:2]) / 4
    torch.testing.assert_close(layer(x, torch.zeros(1, 18, 5, 5), mask), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked):
    x, weight, bias = (
        draw(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate([(1, 2, 4, 4), (2, 2, 2, 2), (2,)])
    )
    offset = 0.3 + 0.1 * draw(1, 8, 3, 3, seed=3, dtype=torch.float64)  # away from whole pixels, which have a kink
    mask = draw(1, 4, 3, 3, seed=4, dtype=torch.float64).sigmoid() if masked else None
    inputs = [t.requires_grad_() for t in (x, offset, weight, bias, mask) if t is not None]
    assert torch.autograd.gradcheck(
        lambda x, offset, weight, bias, mask=None: deform_conv2d(x, offset, weight, bias, mask=mask), inputs
    )


@pytest.mark.parametrize(("kind", "per_tap", "factor"), [("DCN", 18, 1.0), ("DCNv2", 27, 0.5)])
@pytest.mark.parametrize("scope", [None, "detkit"])
def test_layers_that_configs_name(kind, per_tap, factor, scope):
    with DefaultScope.overwrite_default_scope(scope):
        layer = build_conv_layer({"type": kind, "deform_groups": 2}, 4, 6, 3, stride=2, padding=1, bias=False)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {
        "weight": (6, 4, 3, 3),
        "conv_offset.weight": (2 * per_tap, 4, 3, 3),
        "conv_offset.bias": (2 * per_tap,),
    }
    x = draw(2, 4, 7, 7)
    torch.testing.assert_close(layer(x), factor * F.conv2d(x, layer.weight, stride=2, padding=1))


@pytest.mark.parametrize("kind", ["DCN", "DCNv2"])
def test_offsets_start_at_zero_whatever_initialises_convolutions(kind):
    module = ConvModule(4, 4, 3, padding=1, conv_cfg={"type": kind}, norm_cfg={"type": "BN"})
    initialize(nn.ModuleList([module]), {"type": "Normal", "layer": "Conv2d", "std": 1.0})
    assert not module.conv.conv_offset.weight.any()
    assert not module.conv.conv_offset.bias.any()
    assert module.conv.weight.std() > 0
    normal_init(module.conv.conv_offset, std=1)  # else the offsets' gradients below are trivially there
    module(draw(1, 4, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.conv.conv_offset.parameters())


def test_v2_splits_offsets_from_masks():
    """First the offsets of all groups, then the masks."""
    layer = build_conv_layer({"type": "DCNv2", "deform_groups": 2}, 4, 4, 1)
    nn.init.normal_(layer.conv_offset.weight)
    x = draw(1, 4, 5, 5)
    maps = layer.conv_offset(x)
    expected = deform_conv2d(x, maps[:, :4], layer.weight, layer.bias, mask=maps[:, 4:].sigmoid())
    torch.testing.assert_close(layer(x), expected)


def test_half_precision_is_computed_in_float32():
    layer = build_conv_layer({"type": "DCNv2"}, 4, 4, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = draw(1, 4, 6, 6)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(x)
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, expected, rtol=0.05, atol=0.05)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_on_the_meta_device():
    layer = build_conv_layer({"type": "DCNv2"}, 4, 8, 3, stride=2, padding=1).to("meta")
    out = layer(torch.empty(2, 4, 9, 9, device="meta", requires_grad=True))
    out.sum().backward()
    assert out.shape == (2, 8, 5, 5)


def test_an_image_smaller_than_the_kernel():
    layer = DeformConv2d(2, 2, 3, padding=1)
    x = draw(1, 2, 1, 2)
    torch.testing.assert_close(layer(x, torch.zeros(1, 18, 1, 2)), F.conv2d(x, layer.weight, padding=1))


def test_refuses():
    with pytest.raises(ValueError, match="6 channels do not divide into deform_groups=4"):
        DeformConv2d(6, 8, 3, deform_groups=4)
    x = torch.zeros(1, 4, 5, 5)
    with pytest.raises(ValueError, match="36 offset channels were expected, got 18"):
        DeformConv2d(4, 4, 3, padding=1, deform_groups=2)(x, torch.zeros(1, 18, 5, 5))
    with pytest.raises(ValueError, match="a multiple of 18 offset channels, got 17"):
        deform_conv2d(x, torch.zeros(1, 17, 3, 3), torch.zeros(4, 4, 3, 3))
    with pytest.raises(ValueError, match="the mask needs 9 channels, got 3"):
        deform_conv2d(x, torch.zeros(1, 18, 3, 3), torch.zeros(4, 4, 3, 3), mask=torch.zeros(1, 3, 3, 3))
