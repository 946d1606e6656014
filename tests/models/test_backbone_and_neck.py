"""ResNet and FPN: shapes, freezing, styles, weights, and what is refused."""

import pytest
import torch
import torchvision
from torch import nn

from detkit.checkpoints import load_checkpoint_file, open_checkpoint
from detkit.models import FPN, ResNet


def test_resnet_is_torchvisions():
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(weights=None).eval()
    own = ResNet(18).eval()
    missing, unexpected = own.load_state_dict(reference.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ["fc.weight", "fc.bias"])
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = nn.Sequential(*list(reference.children())[:-2])(x)
        torch.testing.assert_close(own(x)[-1], expected)


@pytest.mark.parametrize(("depth", "channels"), [(18, [4, 8, 16, 32]), (50, [16, 32, 64, 128])])
def test_shapes(depth, channels):
    features = ResNet(depth, base_channels=4).eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize(("style", "strided"), [("pytorch", "conv2"), ("caffe", "conv1")])
def test_style_places_the_stride(style, strided):
    block = ResNet(50, base_channels=4, style=style).layer2[0]
    assert getattr(block, strided).stride == (2, 2)
    assert {block.conv1.stride, block.conv2.stride} == {(1, 1), (2, 2)}


def test_frozen_stages_and_statistics():
    network = ResNet(18, base_channels=4, frozen_stages=2, norm_eval=False).train()
    learns = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert learns == {"layer3", "layer4"}
    assert not network.bn1.training
    assert not network.layer2.training
    assert network.layer3[0].bn1.training
    before = network.bn1.running_mean.clone()
    network(torch.randn(2, 3, 32, 32) + 5)
    assert torch.equal(network.bn1.running_mean, before)
    assert not ResNet(18, base_channels=4, norm_eval=True).train().layer4[0].bn1.training


@pytest.mark.parametrize("norm_eval", [True, False])
def test_recomputing_activations_changes_nothing(norm_eval):
    """Not even the running statistics, which torch's checkpoint moves twice."""
    found = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        network = ResNet(18, base_channels=4, norm_eval=norm_eval, with_cp=with_cp).train()
        network(torch.randn(2, 3, 32, 32))[-1].square().sum().backward()
        found.append(([p.grad for p in network.parameters()], dict(network.named_buffers())))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_blocks_start_as_identities():
    network = ResNet(18, base_channels=4)
    network.init_weights()
    assert not network.layer1[0].bn2.weight.any()
    assert network.layer1[0].bn1.weight.all()


def test_weights_of_a_file(tmp_path):
    source = ResNet(18, base_channels=4)
    torch.save(source.state_dict(), tmp_path / "r18.pth")
    network = ResNet(18, base_channels=4, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "r18.pth")})
    network.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_weights_that_would_run_code_are_not_opened(tmp_path, capsys):
    torch.save({"state_dict": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth .*would run code"):
        load_checkpoint_file(str(tmp_path / "bad.pth"))
    assert "must not run" not in capsys.readouterr().out


def test_weights_that_are_not_there(tmp_path):
    network = ResNet(18, base_channels=4, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "none.pth")})
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such checkpoint file"):
        network.init_weights()
    with pytest.raises(ValueError, match="torchvision has no weights 'torchvision://resnet51'"):
        open_checkpoint("torchvision://resnet51")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 19}, "depth must be one of 18, 34, 50, 101, 152, got 19"),
        ({"depth": 18, "out_indices": (4,)}, r"out_indices must lie in \[0, 4\)"),
        ({"depth": 18, "style": "torch"}, "style must be 'pytorch' or 'caffe', got 'torch'"),
        ({"depth": 18, "strides": (1, 2)}, "strides needs one number for each of 4 stages"),
        ({"depth": 18, "frozen_stages": 5}, "frozen_stages must be -1 to 4, got 5"),
    ],
)
def test_resnet_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def levels(channels=(4, 8, 16)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, c, 32 // 2**i, 48 // 2**i, generator=generator) for i, c in enumerate(channels)]


@pytest.mark.parametrize("source", [False, "on_input", "on_lateral", "on_output"])
def test_fpn_shapes(source):
    outs = FPN([4, 8, 16], 6, num_outs=5, start_level=1, add_extra_convs=source)(levels())
    # Two levels from inputs, then halved, rounding up for convolutions and pooling alike.
    assert [tuple(o.shape[1:]) for o in outs] == [(6, 16, 24), (6, 8, 12), (6, 4, 6), (6, 2, 3), (6, 1, 2)]


def test_fpn_adds_the_coarser_level():
    """With identity convolutions, each level is the sum of itself and all above it, repeated."""
    fpn = FPN([1, 1], 1, num_outs=2)
    for conv in [*fpn.lateral_convs, *fpn.fpn_convs]:
        nn.init.dirac_(conv.conv.weight)
        nn.init.zeros_(conv.conv.bias)
    fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    outs = fpn([fine, coarse])
    torch.testing.assert_close(outs[1], coarse)
    torch.testing.assert_close(outs[0], fine + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"add_extra_convs": "on_inputs"}, "did you mean 'on_input'"),
        ({"num_outs": 1}, "num_outs=1 does not fit the 3 levels"),
        ({"end_level": 1, "num_outs": 4}, "extra levels are possible only above the last input"),
        ({"start_level": 3}, "do not lie within 3 inputs"),
    ],
)
def test_fpn_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        FPN(**{"in_channels": [4, 8, 16], "out_channels": 6, "num_outs": 4, **arguments})
