"""Shared layers by hand."""

import pytest
import torch
from torch import nn

from detkit.models.layers import ChannelAttention, ConvStyle, CSPLayer, L2Norm, SPPBottleneck, darknet_block

PLAIN = ConvStyle(None, None, None)


def test_l2_norm_by_hand():
    # (3, 4) has length 5.
    out = L2Norm(2, scale=10)(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([6.0, 8.0]))


def test_l2_norm_of_nothing():
    x = torch.zeros(1, 2, 1, 1, requires_grad=True)
    out = L2Norm(2)(x)
    out.sum().backward()
    assert out.abs().max() == 0
    assert x.grad.isfinite().all()


def test_l2_norm_keeps_the_type_and_computes_in_float32():
    # The square of 300 is beyond half precision.
    x = torch.tensor([300.0, 400.0], dtype=torch.float16).view(1, 2, 1, 1)
    out = L2Norm(2, scale=1)(x)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.6, 0.8], dtype=torch.float16))


def test_channel_attention_by_hand():
    layer = ChannelAttention(2)
    with torch.no_grad():
        layer.fc.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]).view(2, 2, 1, 1))
        layer.fc.bias.copy_(torch.tensor([0.0, 3.0]))
    x = torch.tensor([[1.0, 3.0], [0.0, 3.0]]).view(1, 2, 1, 2)
    # The second channel's mean is 1.5, and (1.5 + 3) / 6 = 0.75; (3 + 3) / 6 = 1.
    torch.testing.assert_close(layer(x), x * torch.tensor([0.75, 1.0]).view(1, 2, 1, 1))


def test_spatial_pyramid_pooling_by_hand():
    layer = SPPBottleneck(2, 3, (3, 5), PLAIN)
    x = torch.zeros(1, 2, 1, 7)
    x[0, :, 0, 3] = 1
    with torch.no_grad():
        layer.conv1.conv.weight.copy_(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
        layer.conv2.conv.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
        for conv in (layer.conv1, layer.conv2):
            conv.conv.bias.zero_()
        out = layer(x)[0, :, 0]
    assert out.tolist() == [[0, 0, 0, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0]]


def test_spatial_pyramid_pooling_refuses_even_windows():
    with pytest.raises(ValueError, match=r"kernel_sizes must be odd numbers, got \(4,\)"):
        SPPBottleneck(4, 4, (4,), PLAIN)


@pytest.mark.parametrize("add_identity", [True, False])
def test_csp_layer_passes_one_part_by_its_blocks(add_identity):
    layer = CSPLayer(2, 2, 1, PLAIN, darknet_block(PLAIN, depthwise=False, add_identity=add_identity))
    for name, parameter in layer.named_parameters():
        nn.init.constant_(parameter, 0.0 if name.endswith("bias") or "blocks" in name else 1.0)
    with torch.no_grad():
        layer.main_conv.conv.weight.mul_(2)
        out = layer(torch.ones(1, 2, 1, 1))
    # Each pixel's sum is 2, or 4 through the main convolution; blocks of zeros keep it only beside a shortcut.
    assert out.flatten().tolist() == ([6.0, 6.0] if add_identity else [2.0, 2.0])
