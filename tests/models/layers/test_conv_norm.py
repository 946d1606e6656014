"""conv_norm: one convolution does what a convolution and its frozen norm do, gradients included."""

from __future__ import annotations

import copy

import pytest
import torch
from mmcv.cnn import build_norm_layer
from torch import nn
from torch.testing import assert_close

from detkit.engine.model.activation_checkpointing import merge_conv_and_frozen_norm
from detkit.models.backbones import ResNet
from detkit.models.layers import ConvNormShortcut, conv_norm


def layers(bias=False, norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias), norm(6)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    return conv, norm.eval()


def calls_of(norm, monkeypatch):
    """How often the norm itself is called, counted without a hook, which would be seen."""
    calls = []
    original = type(norm).forward
    monkeypatch.setattr(type(norm), "forward", lambda self, x: calls.append(1) or original(self, x))
    return calls


@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_both_layers(bias, monkeypatch):
    conv, norm = layers(bias)
    x = torch.randn(2, 4, 11, 7, requires_grad=True)
    leaves = (x, *conv.parameters(), *norm.parameters())
    expected = norm(conv(x))
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    calls = calls_of(norm, monkeypatch)
    found = conv_norm(conv, norm, x)
    assert not calls
    assert_close(found, expected)
    assert_close(torch.autograd.grad((found * weights).sum(), leaves), wanted, rtol=1e-4, atol=1e-5)


def test_norms_of_several_processes_are_folded_too(monkeypatch):
    conv, norm = layers(norm=lambda channels: build_norm_layer({"type": "SyncBN"}, channels)[1])
    x = torch.randn(2, 4, 11, 7)
    expected = norm(conv(x))
    calls = calls_of(norm, monkeypatch)
    assert_close(conv_norm(conv, norm, x), expected)
    assert not calls


def training(conv, norm):
    return conv, norm.train()


def without_statistics(conv, norm):
    return conv, nn.BatchNorm2d(6, track_running_stats=False).eval()


def hooked(conv, norm):
    conv.register_forward_hook(lambda *_: None)
    return conv, norm


def half(conv, norm):
    return conv.bfloat16(), norm.bfloat16()


def of_another_kind(conv, norm):
    class Conv2d(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    return Conv2d(4, 6, 3, bias=False), norm


@pytest.mark.parametrize("change", [training, without_statistics, hooked, half, of_another_kind])
def test_other_layers_are_called_as_they_are(change, monkeypatch):
    conv, norm = change(*layers())
    x = torch.randn(2, 4, 11, 7, dtype=conv.weight.dtype)
    expected = copy.deepcopy(norm)(conv(x))
    calls = calls_of(norm, monkeypatch)
    assert_close(conv_norm(conv, norm, x), expected, rtol=0, atol=0)
    assert calls


@pytest.mark.parametrize(("width", "folded"), [(6, False), (7, True)])
def test_what_is_larger_stays(width, folded, monkeypatch):
    conv, norm = layers()  # 18 weights of an output channel, whose map has a value of four
    x = torch.randn(2, 4, 6, width)
    calls = calls_of(norm, monkeypatch)
    conv_norm(conv, norm, x)
    assert bool(calls) is not folded


def test_a_shortcut_pools_before():
    conv, norm = layers()
    shortcut = ConvNormShortcut(nn.AvgPool2d(2), conv, norm)
    x = torch.randn(2, 4, 18, 14)
    assert list(shortcut.state_dict()) == list(nn.Sequential(nn.AvgPool2d(2), conv, norm).state_dict())
    assert_close(shortcut(x), norm(conv(nn.functional.avg_pool2d(x, 2))))


def test_a_traced_backbone_follows_its_weights():
    torch.manual_seed(0)
    backbone = ResNet(18, base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)).eval()
    holder = nn.Module()
    holder.backbone = backbone
    merge_conv_and_frozen_norm(holder, ["backbone"])
    x = torch.randn(1, 3, 32, 32)
    before = backbone(x)[0]
    with torch.no_grad():
        for parameter in backbone.layer1.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(backbone(x)[0], before)
