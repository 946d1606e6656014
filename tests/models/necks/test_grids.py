"""NAS-FPN and feature pyramid grids: what flows where, held against sums written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detkit.models.necks import FPG, NASFPN

CONV = {"type": "conv", "kernel_size": 1, "act_cfg": None}


def inputs(sizes, channels=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, channels, *size, generator=generator) for size in sizes]


def identity(neck):
    """Makes every convolution the middle tap times one, between like channels."""
    for module in neck.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.dirac_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return neck


def test_nas_fpn_merges_as_in_the_paper():
    """Figure 7, with convolutions that change nothing but make all values positive first."""
    neck = identity(NASFPN([2, 2, 2], 2, 5, 1))
    p3, p4, p5 = inputs([(32, 32), (16, 16), (8, 8)])
    p6 = F.max_pool2d(p5, 2)
    p7 = F.max_pool2d(p6, 2)

    def gated(a, b):
        return b + torch.sigmoid(b.mean((2, 3), keepdim=True)) * a

    middle = F.relu(F.relu(gated(F.interpolate(p6, scale_factor=4), p4)) + p4)
    out3 = F.relu(F.interpolate(middle, scale_factor=2) + p3)
    out4 = F.relu(F.max_pool2d(out3, 2) + middle)
    out5 = F.relu(p5 + gated(F.max_pool2d(out4, 2), F.max_pool2d(out3, 4)))
    out7 = F.relu(p7 + gated(F.max_pool2d(out5, 4), F.max_pool2d(middle, 8)))
    out6 = F.relu(gated(F.interpolate(out7, scale_factor=2), F.max_pool2d(out5, 2)))
    for found, expected in zip(neck([p3, p4, p5]), (out3, out4, out5, out6, out7), strict=True):
        torch.testing.assert_close(found, expected)


def test_nas_fpn_of_any_size():
    levels = NASFPN([2, 2, 2], 2, 5, 2)(inputs([(20, 28), (10, 14), (5, 7)]))
    assert [tuple(level.shape[2:]) for level in levels] == [(20, 28), (10, 14), (5, 7), (2, 3), (1, 1)]


def test_a_grid_upwards():
    up = {"type": "conv", "kernel_size": 1, "stride": 2, "act_cfg": None}
    down = {"type": "interpolation_conv", "kernel_size": 1, "act_cfg": None}
    transitions = {"same_up_trans": up, "across_lateral_trans": CONV, "across_down_trans": down}
    neck = FPG([2, 2], 2, 3, 2, ["bu", "bu"], **transitions, across_skip_trans=CONV, output_trans=_last())
    fine, middle = inputs([(8, 8), (4, 4)])
    first = before = [fine, middle, middle[..., ::2, ::2]]
    for _ in range(2):
        made = []
        for level in range(3):
            value = before[level] + first[level]
            if level > 0:
                value = value + made[-1][..., ::2, ::2]
            if level < 2:
                value = value + F.interpolate(before[level + 1], scale_factor=2)
            made.append(value)
        before = made
    for found, expected in zip(identity(neck)([fine, middle]), before, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_grid_downwards_with_skips():
    double = {"type": "interpolation_conv", "kernel_size": 1, "act_cfg": None}
    up = {"type": "conv", "kernel_size": 1, "stride": 2, "act_cfg": None}
    neck = FPG(
        [2, 2],
        2,
        2,
        2,
        ["td", "td"],
        same_down_trans=double,
        across_lateral_trans=CONV,
        across_up_trans=up,
        output_trans=_last(),
        skip_inds=[(), (0,)],
    )
    fine, coarse = inputs([(8, 8), (4, 4)])
    lower = fine + F.interpolate(coarse, scale_factor=2)  # the coarse level is skipped
    higher = coarse + lower[..., ::2, ::2]
    expected = lower + F.interpolate(higher, scale_factor=2), higher
    for found, wanted in zip(identity(neck)([fine, coarse]), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def _last():
    return {"type": "last_conv", "kernel_size": 1, "act_cfg": None}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NASFPN([2, 2, 2], 2, 4, 1), "NASFPN: num_outs must be 5, got 4"),
        (lambda: NASFPN([2, 2, 2], 2, 5, 1)(inputs([(8, 8)])), "NASFPN: 1 feature maps for 3 in_channels"),
        (lambda: FPG([2, 2], 2, 2, 2, ["bu"]), r"FPG: paths must be 2 \(stack_times\) of bu, td"),
        (lambda: FPG([2, 2], 2, 2, 1, ["up"]), r"FPG: paths must be 1 \(stack_times\) of bu, td"),
        (lambda: FPG([2, 2], 2, 2, 1, ["bu"], skip_inds=[()]), r"skip_inds must have 2 \(num_outs\) items"),
        (lambda: FPG([2, 2], 2, 1, 1, ["bu"]), "FPG: num_outs=1 does not fit the 2 levels"),
        (
            lambda: FPG([2, 2], 2, 2, 1, ["bu"], across_up_trans={"type": "cnov"}),
            "across_up_trans.type must be one of .* did you mean 'conv'",
        ),
        (
            lambda: FPG([2, 2], 2, 2, 1, ["bu"], across_up_trans={"type": "conv", "kernel": 1}),
            "across_up_trans.kernel: unknown key; did you mean 'kernel_size'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises((ValueError, KeyError), match=message):
        make()
