"""DetectoRS: switchable convolutions, the backbone that takes feedback, and the pyramid that gives it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detkit.models.backbones import DetectoRSResNet
from detkit.models.necks import RFP
from detkit.ops import SAConv2d

BACKBONE = {
    "type": "DetectoRS_ResNet",
    "depth": 50,
    "base_channels": 4,
    "norm_eval": False,
    "conv_cfg": {"type": "ConvAWS"},
    "sac": {"type": "SAC", "use_deform": True},
    "stage_with_sac": (False, True, True, True),
}


def backbone(**arguments):
    torch.manual_seed(0)
    return DetectoRSResNet(**{key: value for key, value in {**BACKBONE, **arguments}.items() if key != "type"})


def pyramid(steps=2, **arguments):
    torch.manual_seed(1)
    return RFP(steps, {**BACKBONE, "rfp_inplanes": 16}, 4, in_channels=[16, 32, 64, 128], out_channels=16, num_outs=5)


@pytest.mark.parametrize("use_deform", [False, True])
def test_a_switchable_convolution_by_hand(use_deform):
    torch.manual_seed(0)
    conv = SAConv2d(2, 3, 3, stride=2, padding=1, bias=False, use_deform=use_deform)
    x = torch.randn(1, 2, 8, 8)
    centred = conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)
    weight = centred / (centred.square().sum((1, 2, 3), keepdim=True) / 17 + 1e-5).sqrt()
    # at the start the switch is on, the context nothing, and no tap is moved
    torch.testing.assert_close(conv(x), F.conv2d(x, weight, stride=2, padding=1))
    with torch.no_grad():
        conv.switch.bias.fill_(0.25)
        conv.weight_diff.fill_(0.5)
        conv.pre_context.bias.fill_(0.1)
        conv.post_context.bias.fill_(0.2)
    narrow = F.conv2d(x + 0.1, weight, stride=2, padding=1)
    wide = F.conv2d(x + 0.1, weight + 0.5, stride=2, padding=3, dilation=3)
    torch.testing.assert_close(conv(x), 0.25 * narrow + 0.75 * wide + 0.2)


def test_feedback_enters_every_stage_but_the_first():
    taking = backbone(rfp_inplanes=16, sac=None)
    plain = backbone(sac=None)
    plain.load_state_dict({key: value for key, value in taking.state_dict().items() if "rfp_conv" not in key})
    firsts = [f"layer{stage}.0.rfp_conv.weight" for stage in (2, 3, 4)]
    assert [key for key in taking.state_dict() if key.endswith("rfp_conv.weight")] == firsts
    images = torch.randn(1, 3, 64, 64)
    feedback = [torch.randn(1, 16, size, size) for size in (16, 8, 4, 2)]
    taking.eval()
    plain.eval()
    expected = plain(images)
    torch.testing.assert_close(taking(images), expected)
    found = taking.rfp_forward(images, feedback)
    torch.testing.assert_close(found[0], expected[0])
    assert all((new - old).abs().max() > 0.01 for new, old in zip(found[1:], expected[1:], strict=True))
    block = taking.layer2[0]
    into = expected[0]
    added = F.conv2d(feedback[1], block.rfp_conv.weight, block.rfp_conv.bias)
    torch.testing.assert_close(block(into, feedback[1]), F.relu(block.summed(into) + added))


def test_the_pyramid_mixes_what_it_feeds_back():
    first, neck = backbone(output_img=True), pyramid()
    neck.init_weights()
    images = torch.randn(1, 3, 128, 128)
    inputs = first(images)
    assert inputs[0] is images
    once = pyramid(steps=1)
    once.load_state_dict({key: value for key, value in neck.state_dict().items() if "rfp_modules" not in key})
    old = once(inputs)
    neck.eval(), once.eval()
    aspp = neck.rfp_aspp
    feedback = [old[0], *map(aspp, old[1:4])]
    again = once((images, *neck.rfp_modules[0].rfp_forward(images, feedback)))
    # the mixture starts with a half of each
    for found, a, b in zip(neck(inputs), old, again, strict=True):
        torch.testing.assert_close(found, (a + b) / 2)
    near, mean = (
        F.relu(F.conv2d(x, aspp.aspp[i].weight, aspp.aspp[i].bias))
        for i, x in ((0, old[1]), (3, old[1].mean((2, 3), True)))
    )
    torch.testing.assert_close(feedback[1][:, :4], near)
    torch.testing.assert_close(feedback[1][:, 12:], mean.expand_as(near))
    sum(level.square().mean() for level in neck.train()(first.train()(images))).backward()
    unused = {name for name, weight in neck.named_parameters() if weight.grad is None}
    assert unused == set()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pyramid(steps=0), "rfp_steps must be at least 1"),
        (lambda: RFP(2, BACKBONE, 4, (1, 3), in_channels=[4], out_channels=4, num_outs=1), r"the last of aspp_dilat"),
        (
            lambda: RFP(1, BACKBONE, 4, init_cfg={"type": "Xavier"}, in_channels=[4], out_channels=4, num_outs=1),
            "init_cfg would undo",
        ),
        (lambda: backbone(depth=18), "DetectoRS_ResNet: depth must be one of 50, 101, 152, got 18"),
        (lambda: backbone(stage_with_sac=(True,)), r"stage_with_sac needs 4 flags, got \(True,\)"),
        (lambda: backbone(pretrained="a.pth", init_cfg={"type": "Pretrained"}), "pretrained and init_cfg both"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
