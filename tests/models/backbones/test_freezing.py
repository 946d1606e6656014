"""Backbones other than ResNet's family: what does not learn, recomputed activations, and what is refused."""

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from detkit.models.backbones import SSDVGG, CSPDarknet, CSPNeXt, Darknet, HRNet, MobileNetV2

SMALL = {"deepen_factor": 0.33, "widen_factor": 0.125}
STAGE = {"num_modules": 1, "block": "BASIC"}
EXTRA = {
    f"stage{n}": {**STAGE, "num_branches": n, "num_blocks": (1,) * n, "num_channels": tuple(4 * 2**i for i in range(n))}
    for n in (1, 2, 3, 4)
}


@pytest.mark.parametrize(
    ("network", "frozen", "learns"),
    [
        # MMDetection counts Darknet's stages from its first convolution, the others' from their stem at 0.
        (lambda: Darknet(frozen_stages=2, norm_eval=False), "conv1", "conv_res_block2"),
        (lambda: CSPDarknet(**SMALL, frozen_stages=2), "stage2", "stage3"),
        (lambda: CSPNeXt(**SMALL, frozen_stages=0), "stem", "stage1"),
        (lambda: MobileNetV2(0.25, frozen_stages=0), "conv1", "layer1"),
        (lambda: MobileNetV2(0.25, frozen_stages=3), "layer3", "layer4"),
    ],
)
def test_frozen_stages(network, frozen, learns):
    with torch.device("meta"):
        network = network().train()
    before = [name for name, _ in network.named_children()].index(learns)
    for index, (_, child) in enumerate(network.named_children()):
        norms = [module for module in child.modules() if isinstance(module, _BatchNorm)]
        assert all(parameter.requires_grad == (index >= before) for parameter in child.parameters())
        assert all(norm.training == (index >= before) for norm in norms)
    assert not any(parameter.requires_grad for parameter in getattr(network, frozen).parameters())


@pytest.mark.parametrize("norm_eval", [True, False])
@pytest.mark.parametrize("kind", [Darknet, CSPDarknet, CSPNeXt, MobileNetV2, HRNet])
def test_norm_eval_holds_statistics(kind, norm_eval):
    arguments = {Darknet: {}, MobileNetV2: {"widen_factor": 0.25}, HRNet: {"extra": EXTRA}}.get(kind, SMALL)
    with torch.device("meta"):
        network = kind(**arguments, norm_eval=norm_eval).train()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert len(norms) > 10
    assert {norm.training for norm in norms} == {not norm_eval}
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("kind", [MobileNetV2, HRNet])
def test_recomputing_activations_changes_nothing(kind):
    found = []
    arguments = {"widen_factor": 0.25} if kind is MobileNetV2 else {"extra": EXTRA}
    for with_cp in (False, True):
        torch.manual_seed(0)
        network = kind(**arguments, with_cp=with_cp, norm_eval=False).train()
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        sum(out.square().sum() for out in network(x)).backward()
        found.append(([p.grad for p in network.parameters()], dict(network.named_buffers())))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_hrnet_takes_images_of_any_size():
    outs = HRNet(EXTRA).eval()(torch.randn(1, 3, 70, 101))
    assert [tuple(out.shape) for out in outs] == [(1, 4, 18, 26), (1, 8, 9, 13), (1, 16, 5, 7), (1, 32, 3, 4)]


def test_hrnet_blocks_start_as_identities():
    network = HRNet(EXTRA, zero_init_residual=True)
    network.init_weights()
    assert not network.stage2[0].branches[1][0].bn2.weight.any()
    assert network.stage2[0].branches[1][0].bn1.weight.all()


def test_mobilenet_has_no_last_convolution_where_nobody_asks():
    network = MobileNetV2(0.25, out_indices=(2, 6)).train()
    assert [tuple(out.shape[1:]) for out in network(torch.randn(2, 3, 64, 64))] == [(8, 8, 8), (80, 2, 2)]
    assert network.conv2.bn.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Darknet(depth=19), "depth must be one of 53, got 19"),
        (lambda: Darknet(out_indices=(6,)), r"out_indices must lie in \[0, 5\]"),
        (lambda: Darknet(frozen_stages=7), "frozen_stages must be -1 to 6, got 7"),
        (lambda: CSPDarknet(arch="P7"), "CSPDarknet: arch must be one of P5, P6, got 'P7'"),
        (lambda: CSPNeXt(frozen_stages=5), "CSPNeXt: frozen_stages must be -1 to 4, got 5"),
        (lambda: CSPNeXt(arch_ovewrite=[[64, 128]]), "each stage of arch_ovewrite is in_channels, out_channels"),
        (lambda: SSDVGG(17), "depth must be one of 11, 13, 16, 19, got 17"),
        (lambda: SSDVGG(16, out_feature_indices=(22, 35)), r"lie in \[0, 35\), got \(22, 35\) at depth 16"),
        (lambda: MobileNetV2(out_indices=(8,)), r"out_indices must lie in \[0, 8\)"),
        (lambda: HRNet({"stage1": EXTRA["stage1"]}), "stage2 is missing"),
        (
            lambda: HRNet(EXTRA | {"stage2": EXTRA["stage2"] | {"block": "BASICS"}}),
            "extra.stage2.block 'BASICS' is unknown; did you mean 'BASIC'",
        ),
        (
            lambda: HRNet(EXTRA | {"stage3": EXTRA["stage3"] | {"num_blocks": (1, 1)}}),
            "extra.stage3.num_blocks needs a number for each of 3 branches",
        ),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
