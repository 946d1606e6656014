"""The dynamic head, held against its formula in plain operators where no tap is moved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detkit.models.necks import DyHead
from detkit.models.necks.dyhead import _first


def inputs(channels=32, sizes=((9, 6), (5, 3), (3, 2))):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


def test_one_block_by_hand():
    """Taps stay at the start, and each weighs sigmoid(0) = 1/2."""
    torch.manual_seed(0)
    neck = DyHead(32, 16, num_blocks=1)
    (block,) = neck.dyhead_blocks
    x = inputs()

    def seen(conv, level, stride=1):
        return conv.norm(F.conv2d(level, conv.conv.weight / 2, stride=stride, padding=1))

    def weighed(level):
        pool, conv, *_ = block.scale_attn_module
        return level * F.hardtanh((conv(pool(level)).relu() + 3) / 6, 0, 1)

    higher = F.interpolate(seen(block.spatial_conv_high, x[2]), size=(5, 3), mode="bilinear", align_corners=True)
    parts = [seen(block.spatial_conv_mid, x[1]), seen(block.spatial_conv_low, x[0], stride=2), higher]
    mean = sum(map(weighed, parts)) / 3
    relu = block.task_attn_module
    hidden = F.relu(F.conv2d(mean.mean((2, 3), keepdim=True), relu.conv1.conv.weight, relu.conv1.conv.bias))
    numbers = F.hardtanh((F.conv2d(hidden, relu.conv2.conv.weight, relu.conv2.conv.bias) + 3) / 6, 0, 1) - 0.5
    a1, b1, a2, b2 = numbers.split(16, dim=1)
    expected = torch.maximum(mean * (2 * a1 + 1) + b1, mean * 2 * a2 + b2)
    outputs = neck(x)
    torch.testing.assert_close(outputs[1], expected)
    assert [tuple(level.shape) for level in outputs] == [(2, 16, 9, 6), (2, 16, 5, 3), (2, 16, 3, 2)]


def test_every_weight_learns_and_levels_may_be_one():
    torch.manual_seed(0)
    neck = DyHead(16, 16, num_blocks=2, zero_init_offset=False)
    sum(level.square().mean() for level in neck(inputs(16))).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in neck.parameters())
    assert len(neck(inputs(16)[:1])) == 1


def test_offsets_of_a_coarser_map_are_the_first_numbers():
    values = torch.arange(2 * 2 * 6.0).reshape(2, 2, 2, 3)
    assert _first(values, 2, 3) is values
    assert _first(values, 1, 2).tolist() == [[[[0, 1]], [[2, 3]]], [[[12, 13]], [[14, 15]]]]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        DyHead(16, 16, num_blocks=0)
    with pytest.raises(ValueError, match="init_cfg would undo"):
        DyHead(16, 16, init_cfg={"type": "Normal"})
