"""ResNet's family: features and names of weights are MMDetection's; deformable layers, plugins, and what is refused."""

import copy
import gzip
import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from reference import projection, rule_tensor, rule_weights
from torch import nn

from detkit.config import check
from detkit.models import HRNet, RegNet, Res2Net, ResNeSt, ResNet, ResNeXt
from detkit.models.backbones.residual_blocks import ResidualBlock
from detkit.ops.deform_conv import DeformConv2dPack, ModulatedDeformConv2dPack
from detkit.registry import MODELS

DCN = {"type": "DCN", "deform_groups": 1, "fallback_on_stride": False}
DCNV2 = {"type": "DCNv2", "deform_groups": 2}
LATER = (False, True, True, True)
THREE = {"num_stages": 3, "strides": (1, 2, 2), "dilations": (1, 1, 2), "out_indices": (0, 2)}

CASES = {
    "resnet_caffe_dcn": {
        "type": "ResNet", "depth": 50, "base_channels": 8, "style": "caffe", "dcn": DCN, "stage_with_dcn": LATER,
    },
    "resnet_dcnv2_attention": {
        "type": "ResNet", "depth": 50, "base_channels": 8, "dcn": DCNV2, "stage_with_dcn": LATER,
        "plugins": [{
            "cfg": {
                "type": "GeneralizedAttention", "spatial_range": -1, "num_heads": 8, "attention_type": "1111",
                "kv_stride": 2,
            },
            "stages": (False, False, True, True), "position": "after_conv2",
        }],
    },
    "resnet_context": {
        "type": "ResNet", "depth": 50, "base_channels": 8, "stem_channels": 12, "deep_stem": True, "avg_down": True,
        "plugins": [
            {"cfg": {"type": "ContextBlock", "ratio": 1 / 4}, "position": "after_conv3"},
            {"cfg": {"type": "ContextBlock", "ratio": 1 / 4, "postfix": "_a"}, "stages": LATER,
             "position": "after_conv1"},
        ],
    },
    "resnet_ws": {
        "type": "ResNet", "depth": 50, "base_channels": 8, "conv_cfg": {"type": "ConvWS"},
        "norm_cfg": {"type": "GN", "num_groups": 4},
    },
    "resnet_v1d": {"type": "ResNetV1d", "depth": 34, "base_channels": 8, **THREE},
    "resnext": {"type": "ResNeXt", "depth": 50, "groups": 4, "base_width": 8, "base_channels": 16},
    "resnext_dcn": {
        "type": "ResNeXt", "depth": 50, "groups": 4, "base_width": 8, "base_channels": 16, "dcn": DCN,
        "stage_with_dcn": LATER,
    },
    "res2net": {"type": "Res2Net", "depth": 50, "scales": 4, "base_width": 26, "base_channels": 16},
    "res2net_dcn": {
        "type": "Res2Net", "depth": 50, "scales": 3, "base_width": 14, "base_channels": 16, "dcn": DCN,
        "stage_with_dcn": LATER,
    },
    "resnest": {"type": "ResNeSt", "depth": 50, "stem_channels": 16, "base_channels": 16},
    "resnest_groups": {
        "type": "ResNeSt", "depth": 50, "base_channels": 16, "groups": 2, "base_width": 8, "radix": 4,
        "avg_down_stride": False,
    },
    "resnest_radix1": {"type": "ResNeSt", "depth": 50, "base_channels": 16, "radix": 1, "style": "caffe"},
    "regnet_400mf": {"type": "RegNet", "arch": "regnetx_400mf"},
    "regnet_dict": {
        "type": "RegNet",
        "arch": {"w0": 24, "wa": 36.5, "wm": 2.3, "group_w": 16, "depth": 10, "bot_mul": 0.5},
    },
}  # fmt: skip


def image() -> torch.Tensor:
    return rule_tensor([2, 3, 66, 97], -2, 2, 1000)


# Shape, mean, standard deviation and projection of each feature map, computed with MMDetection 3.3.0 (its
# deformable convolutions on torchvision's kernel).
EXPECTED = {
    "resnet_caffe_dcn": [
        ((2, 32, 17, 25), 1.320744, 1.660587, 0.396488),
        ((2, 64, 9, 13), 0.9912508, 1.133273, 0.5360563),
        ((2, 128, 5, 7), 1.227032, 1.401232, 1.231104),
        ((2, 256, 3, 4), 1.171189, 1.316247, 0.9917081),
    ],
    "resnet_dcnv2_attention": [
        ((2, 32, 17, 25), 1.320744, 1.660587, 0.396488),
        ((2, 64, 9, 13), 0.7650016, 0.9825213, 0.02229184),
        ((2, 128, 5, 7), 1.01276, 1.078824, 1.165211),
        ((2, 256, 3, 4), 0.831057, 1.108787, -1.801388),
    ],
    "resnet_context": [
        ((2, 32, 17, 25), 0.7377632, 0.8007794, 0.62854),
        ((2, 64, 9, 13), 1.707033, 1.679569, -0.07824838),
        ((2, 128, 5, 7), 2.962887, 3.093301, -0.1315051),
        ((2, 256, 3, 4), 2.127161, 2.6543, -0.8272101),
    ],
    "resnet_ws": [
        ((2, 32, 17, 25), 1.051739, 1.337474, 1.174518),
        ((2, 64, 9, 13), 1.217438, 1.431897, 0.9314319),
        ((2, 128, 5, 7), 1.606781, 1.707006, -0.09030405),
        ((2, 256, 3, 4), 1.073847, 1.264052, 0.8032004),
    ],
    "resnet_v1d": [
        ((2, 8, 17, 25), 0.8321677, 0.9336953, 0.0360158),
        ((2, 32, 5, 7), 4.418523, 4.534343, 6.640243),
    ],
    "resnext": [
        ((2, 64, 17, 25), 1.68498, 1.733684, -0.3704243),
        ((2, 128, 9, 13), 1.859756, 2.134631, -0.1915708),
        ((2, 256, 5, 7), 2.703181, 2.731784, -0.4279514),
        ((2, 512, 3, 4), 2.128165, 2.741794, 5.037401),
    ],
    "resnext_dcn": [
        ((2, 64, 17, 25), 1.68498, 1.733684, -0.3704243),
        ((2, 128, 9, 13), 1.669629, 1.926603, -0.1638513),
        ((2, 256, 5, 7), 2.419433, 2.73234, 1.576692),
        ((2, 512, 3, 4), 2.135752, 2.556427, -1.907693),
    ],
    "res2net": [
        ((2, 64, 17, 25), 1.118764, 1.245561, 1.443357),
        ((2, 128, 9, 13), 1.583188, 1.77232, 0.4269613),
        ((2, 256, 5, 7), 3.56712, 4.216187, 4.569743),
        ((2, 512, 3, 4), 4.000232, 4.90477, -4.870648),
    ],
    "res2net_dcn": [
        ((2, 64, 17, 25), 0.7237365, 0.8142777, -0.2985145),
        ((2, 128, 9, 13), 1.347651, 1.4558, 1.009708),
        ((2, 256, 5, 7), 2.191878, 2.200625, 0.4626695),
        ((2, 512, 3, 4), 1.909116, 2.246957, 1.650032),
    ],
    "resnest": [
        ((2, 64, 17, 25), 1.475983, 1.724983, 0.5777782),
        ((2, 128, 9, 13), 1.725024, 2.006659, -0.6551729),
        ((2, 256, 5, 7), 1.792832, 1.940956, 2.666106),
        ((2, 512, 3, 4), 1.260643, 1.674537, 2.536858),
    ],
    "resnest_groups": [
        ((2, 64, 17, 25), 1.608445, 1.96059, 1.390673),
        ((2, 128, 9, 13), 1.840512, 2.088309, -0.5945259),
        ((2, 256, 5, 7), 1.815422, 1.876944, 2.707131),
        ((2, 512, 3, 4), 1.438967, 1.809768, 0.8781917),
    ],
    "resnest_radix1": [
        ((2, 64, 17, 25), 0.9380596, 1.116499, 0.7432582),
        ((2, 128, 9, 13), 0.8559917, 1.025677, -0.03886825),
        ((2, 256, 5, 7), 0.7433283, 0.7961814, 0.0365832),
        ((2, 512, 3, 4), 0.5239708, 0.7025838, 0.476243),
    ],
    "regnet_400mf": [
        ((2, 32, 17, 25), 0.4427278, 0.6804706, 0.8716569),
        ((2, 64, 9, 13), 0.3121591, 0.5007371, -0.3508577),
        ((2, 160, 5, 7), 0.9020197, 1.018196, 0.1014008),
        ((2, 384, 3, 4), 2.422534, 2.565293, -2.35978),
    ],
    "regnet_dict": [
        ((2, 24, 17, 25), 0.4912717, 0.6878886, 1.088396),
        ((2, 64, 9, 13), 0.2950093, 0.5295718, 0.2766355),
        ((2, 128, 5, 7), 0.6531673, 0.797174, -1.023323),
        ((2, 288, 3, 4), 0.9316728, 0.9700688, 0.08801468),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_features_are_mmdetections(name):
    network = MODELS.build(copy.deepcopy(CASES[name]))
    network.load_state_dict(rule_weights(network))
    with torch.no_grad():
        features = network.eval()(image())
    for feature, (shape, *figures) in zip(features, EXPECTED[name], strict=True):
        assert tuple(feature.shape) == shape
        found = torch.tensor([feature.mean(), feature.std(), projection(feature)])
        torch.testing.assert_close(found, torch.tensor(figures), rtol=2e-4, atol=2e-4)


DCN_C3_C5 = {"dcn": DCN, "stage_with_dcn": LATER}
X101 = {"type": "ResNeXt", "depth": 101, "groups": 32, "base_width": 4}
GCB = {
    "cfg": {"type": "ContextBlock", "ratio": 1 / 16},
    "stages": LATER,
    "position": "after_conv3",
}
ATTENTION = {
    "cfg": {
        "type": "GeneralizedAttention",
        "spatial_range": -1,
        "num_heads": 8,
        "attention_type": "0010",
        "kv_stride": 2,
    },
    "stages": (False, False, True, True),
    "position": "after_conv2",
}
WS = {"conv_cfg": {"type": "ConvWS"}, "norm_cfg": {"type": "GN", "num_groups": 32}}
# Backbones of MMDetection's configs.
BACKBONES = {
    "retinanet/retinanet_x101-64x4d_fpn_ms-640-800-3x_coco.py": {**X101, "groups": 64},
    "cascade_rcnn/cascade-mask-rcnn_x101-32x8d_fpn_ms-3x_coco.py": {**X101, "base_width": 8},
    "dcn/faster-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco.py": {**X101, **DCN_C3_C5},
    "gcnet/cascade-mask-rcnn_x101-32x4d-syncbn-dconv-c3-c5-r16-gcb-c3-c5_fpn_1x_coco.py": {
        **X101,
        **DCN_C3_C5,
        "plugins": [GCB],
    },
    "gn+ws/mask-rcnn_x101-32x4d_fpn_gn-ws-all_2x_coco.py": {**X101, **WS},
    "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py": {
        "type": "ResNet",
        "depth": 50,
        "dcn": {"type": "DCNv2", "deform_groups": 4},
        "stage_with_dcn": LATER,
    },
    "empirical_attention/faster-rcnn_r50-attn0010-dcn_fpn_1x_coco.py": {
        "type": "ResNet",
        "depth": 50,
        "plugins": [ATTENTION],
        **DCN_C3_C5,
    },
    "gcnet/mask-rcnn_r50-syncbn-gcb-r16-c3-c5_fpn_1x_coco.py": {"type": "ResNet", "depth": 50, "plugins": [GCB]},
    "res2net/faster-rcnn_res2net-101_fpn_2x_coco.py": {"type": "Res2Net", "depth": 101, "style": "pytorch"},
    "resnest/faster-rcnn_s101_fpn_syncbn-backbone+head_ms-range-1x_coco.py": {
        "type": "ResNeSt",
        "depth": 101,
        "stem_channels": 128,
    },
    "regnet/mask-rcnn_regnetx-3.2GF-mdconv-c3-c5_fpn_1x_coco.py": {
        "type": "RegNet",
        "arch": "regnetx_3.2gf",
        "dcn": {"type": "DCNv2", "deform_groups": 1},
        "stage_with_dcn": LATER,
    },
    "regnet/mask-rcnn_regnetx-4GF_fpn_1x_coco.py": {"type": "RegNet", "arch": "regnetx_4.0gf"},
    "regnet/mask-rcnn_regnetx-6.4GF_fpn_1x_coco.py": {"type": "RegNet", "arch": "regnetx_6.4gf"},
    "regnet/faster-rcnn_regnetx-800MF_fpn_ms-3x_coco.py": {"type": "RegNet", "arch": "regnetx_800mf"},
}


@pytest.fixture(scope="module")
def reference_keys():
    with gzip.open(Path(__file__).parents[2] / "data" / "state_dicts.json.gz", "rt") as file:
        return json.load(file)


@pytest.mark.parametrize("name", BACKBONES)
def test_keys_and_shapes_are_mmdetections(name, reference_keys):
    with torch.device("meta"):
        network = MODELS.build(copy.deepcopy(BACKBONES[name]))
    found = {f"backbone.{key}": list(value.shape) for key, value in network.state_dict().items()}
    assert found == {k: v for k, v in reference_keys[name]["keys"].items() if k.startswith("backbone.")}


@pytest.mark.parametrize("scope", [None, "detkit"])
def test_stages_with_deformable_convolutions(scope):
    with DefaultScope.overwrite_default_scope(scope), torch.device("meta"):
        network = ResNet(50, base_channels=8, dcn=dict(DCNV2), stage_with_dcn=(False, True, True, True))
    kinds = [{type(block.conv2) for block in getattr(network, name)} for name in network.stage_names]
    assert kinds == [{torch.nn.Conv2d}, *[{ModulatedDeformConv2dPack}] * 3]


def test_fallback_on_stride_keeps_strided_convolutions_plain():
    dcn = {**DCN, "fallback_on_stride": True}
    network = ResNet(50, base_channels=8, dcn=dcn, stage_with_dcn=LATER)
    assert type(network.layer2[0].conv2) is torch.nn.Conv2d
    assert {type(block.conv2) for block in network.layer2[1:]} == {DeformConv2dPack}
    assert dcn["fallback_on_stride"], "the config stays as it was given"


@pytest.mark.parametrize("kind", [ResNeXt, Res2Net, ResNeSt])
def test_blocks_start_as_identities(kind):
    network = kind(depth=50, base_channels=16)
    network.init_weights()
    block = network.layer2[1]
    assert not block.last_norm.weight.any()
    x = torch.rand(1, block.conv1.in_channels, 4, 4)
    torch.testing.assert_close(block.eval()(x), x)


def test_offsets_start_at_zero_in_a_new_network():
    network = ResNet(50, base_channels=8, dcn=DCN, stage_with_dcn=LATER)
    network.init_weights()
    assert not network.layer3[0].conv2.conv_offset.weight.any()


@pytest.mark.parametrize("name", ["resnet_context", "res2net_dcn", "resnest", "regnet_dict"])
@pytest.mark.parametrize("norm_eval", [True, False])
def test_recomputing_activations_changes_nothing(name, norm_eval):
    found = []
    for with_cp in (False, True):
        network = MODELS.build({**copy.deepcopy(CASES[name]), "with_cp": with_cp, "norm_eval": norm_eval}).train()
        network.load_state_dict(rule_weights(network))
        network(image())[-1].square().mean().backward()
        found.append(([p.grad for p in network.parameters()], dict(network.named_buffers())))
    assert all(gradient is not None for gradient in found[0][0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet_context", "resnest", "regnet_dict"])
def test_frozen_stages(name):
    network = MODELS.build({**copy.deepcopy(CASES[name]), "frozen_stages": 1, "norm_eval": False}).train()
    learns = {key.split(".")[0] for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert learns == {"layer2", "layer3", "layer4"}
    before = {key: value.clone() for key, value in network.named_buffers() if not key.startswith(("layer2", "layer3"))}
    network(image())
    moved = {key.split(".")[0] for key, value in before.items() if not torch.equal(network.get_buffer(key), value)}
    assert moved == {"layer4"}


def test_a_config_may_say_all_this():
    plugin = {**CASES["resnet_context"]["plugins"][1], "stages": list(LATER)}
    backbone = {"type": "ResNet", "depth": 50, "plugins": [plugin], "dcn": DCN, "stage_with_dcn": LATER}
    model = {"type": "RetinaNet", "backbone": backbone}
    check({"model": model})
    check({"model": {"type": "RetinaNet", "backbone": {"type": "RegNet", "arch": "regnetx_3.2gf"}}})
    plugin["cfg"] = {"type": "ContextBlock", "ration": 1 / 4}
    with pytest.raises(TypeError, match=r"model\.backbone\.plugins\.0\.cfg.*ration.*ratio"):
        check({"model": model})


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ResNeXt, {"depth": 18}, "ResNeXt: depth must be one of 50, 101, 152, got 18"),
        (ResNeSt, {"depth": 50, "radix": 0}, "ResNeSt: radix must be 1 or more, got 0"),
        (Res2Net, {"depth": 50, "scales": 1}, "Res2Net: scales must be 2 or more .*got 1"),
        (Res2Net, {"depth": 50, "style": "caffe"}, "Res2Net: style must be 'pytorch', got 'caffe'"),
        (RegNet, {"arch": "regnetx_3gf"}, "no arch 'regnetx_3gf'; did you mean regnetx_3.2gf or"),
        (RegNet, {"arch": {"w0": 24, "wa": 24.48}}, "arch lacks wm, group_w, depth, bot_mul"),
        (RegNet, {"arch": {**CASES["regnet_dict"]["arch"], "w0": 25}}, "w0 a positive multiple of 8"),
        (ResNet, {"depth": 18, "dcn": DCN, "stage_with_dcn": LATER}, "for blocks with a bottleneck"),
        (ResNet, {"depth": 50, "dcn": DCN, "stage_with_dcn": LATER[:3]}, "one flag for each of 4 stages"),
        (ResNet, {"depth": 50, "dcn": DCN, "stage_with_dcn": LATER, "conv_cfg": {"type": "ConvWS"}}, "no ConvWS"),
        (ResNet, {"depth": 50, "plugins": [{"cfg": GCB["cfg"], "position": "after_conv4"}]}, "got 'after_conv4'"),
        (ResNet, {"depth": 50, "plugins": [{**GCB, "stages": (True,)}]}, "stages needs one flag for each of 4"),
        (ResNet, {"depth": 50, "plugins": [GCB, GCB]}, "has 'context_block' already; give the second a 'postfix'"),
    ],
)
def test_refuses(kind, arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_unknown_keys_of_a_plugin():
    with pytest.raises(KeyError, match=r"plugins\.0\.stage: unknown key; did you mean 'stages'"):
        ResNet(50, plugins=[{"cfg": GCB["cfg"], "position": "after_conv3", "stage": LATER}])
    with pytest.raises(KeyError, match=r"arch\.wn: unknown key"):
        RegNet({**CASES["regnet_dict"]["arch"], "wn": 2})


def last_norms(network):
    return [module.last_norm.weight for module in network.modules() if isinstance(module, ResidualBlock)]


def small_resnet(**options):
    return ResNet(18, base_channels=4, **options)


def small_hrnet(**options):
    branches = {
        n: {"num_branches": n, "num_blocks": (1,) * n, "num_channels": (4, 8, 16, 32)[:n]} for n in (1, 2, 3, 4)
    }
    extra = {f"stage{n}": {"num_modules": 1, "block": "BASIC", **plan} for n, plan in branches.items()}
    return HRNet(extra, zero_init_residual=True, **options)


@pytest.mark.parametrize("make", [small_resnet, small_hrnet])
def test_blocks_start_as_identities_but_for_weights_that_were_loaded(make, tmp_path):
    network = make()
    network.init_weights()
    assert not any(weight.any() for weight in last_norms(network))
    for weight in last_norms(network):
        nn.init.constant_(weight, 0.5)
    network.init_weights()  # a second time nothing is done
    torch.save({"state_dict": network.state_dict()}, tmp_path / "half.pth")
    cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "half.pth")}
    for init_cfg in (cfg, [cfg]):
        loaded = make(init_cfg=init_cfg)
        loaded.init_weights()
        assert all((weight == 0.5).all() for weight in last_norms(loaded))
