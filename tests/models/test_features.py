"""Features of backbones and necks are MMDetection's, of weights and inputs that a rule makes."""

import pytest
import torch
from reference import projection, rule_tensor, rule_weights
from torch import nn

from detkit.registry import MODELS

# fmt: off
EXTRA = {
    "stage1": {"num_modules": 1, "num_branches": 1, "block": "BOTTLENECK", "num_blocks": (2,), "num_channels": (16,)},
    "stage2": {"num_modules": 1, "num_branches": 2, "block": "BASIC", "num_blocks": (2, 1), "num_channels": (6, 12)},
    "stage3": {
        "num_modules": 2, "num_branches": 3, "block": "BASIC", "num_blocks": (1, 1, 2), "num_channels": (6, 12, 24),
    },
    "stage4": {
        "num_modules": 2, "num_branches": 4, "block": "BASIC", "num_blocks": (1, 1, 1, 1),
        "num_channels": (6, 12, 24, 48),
    },
}
SMALL = {"deepen_factor": 0.33, "widen_factor": 0.125}
P6 = SMALL | {"arch": "P6", "use_depthwise": True, "out_indices": (0, 3, 5)}
LEVELS = {"in_channels": [6, 8, 10], "out_channels": 12}
PYRAMID = LEVELS | {"num_outs": 5, "start_level": 1, "relu_before_extra_convs": True}
GN = {"type": "GN", "num_groups": 4}
BACKBONES = {
    "darknet": {"type": "Darknet", "out_indices": (0, 3, 4)},
    "csp_darknet": {"type": "CSPDarknet", **SMALL},
    "csp_darknet_p6": {"type": "CSPDarknet", **P6},
    "cspnext": {"type": "CSPNeXt", **SMALL},
    "cspnext_p6": {"type": "CSPNeXt", **P6, "channel_attention": False, "expand_ratio": 0.75},
    "ssd_vgg": {"type": "SSDVGG", "depth": 11, "out_feature_indices": (13, 24)},
    "mobilenet_v2": {"type": "MobileNetV2", "widen_factor": 0.35, "out_indices": (1, 2, 4, 7)},
    "hrnet": {"type": "HRNet", "extra": EXTRA},
    "hrnet_finest": {"type": "HRNet", "extra": EXTRA, "multiscale_output": False},
}
NECKS = {
    "yolov3": {"type": "YOLOV3Neck", "num_scales": 3, "in_channels": [10, 8, 6], "out_channels": [8, 6, 4]},
    "yolox": {"type": "YOLOXPAFPN", **LEVELS, "num_csp_blocks": 2},
    "yolox_depthwise": {"type": "YOLOXPAFPN", **LEVELS, "use_depthwise": True},
    "rtmdet": {"type": "CSPNeXtPAFPN", **LEVELS, "num_csp_blocks": 1, "expand_ratio": 0.5},
    "ssd": {
        "type": "SSDNeck", "in_channels": (6, 8, 10), "out_channels": (6, 8, 10, 12, 8), "level_strides": (2, 1),
        "level_paddings": (1, 1), "last_kernel_size": 2,
    },
    "ssd_lite": {
        "type": "SSDNeck", "in_channels": (6, 8, 10), "out_channels": (6, 8, 10, 12), "level_strides": (2,),
        "level_paddings": (1,), "l2_norm_scale": None, "use_depthwise": True, "norm_cfg": {"type": "BN"},
        "act_cfg": {"type": "ReLU6"},
    },
    "dilated": {
        "type": "DilatedEncoder", "in_channels": 10, "out_channels": 8, "block_mid_channels": 4,
        "num_residual_blocks": 2, "block_dilations": [2, 4],
    },
    "centernet": {
        "type": "CTResNetNeck", "in_channels": 10, "num_deconv_filters": (8, 6), "num_deconv_kernels": (4, 4),
        "use_dcn": False,
    },
    "hrfpn": {"type": "HRFPN", **LEVELS, "num_outs": 4},
    "hrfpn_max": {"type": "HRFPN", **LEVELS, "num_outs": 3, "pooling_type": "MAX", "stride": 2},
    "pafpn": {"type": "PAFPN", **LEVELS, "num_outs": 4},
    "pafpn_input": {"type": "PAFPN", **PYRAMID, "add_extra_convs": "on_input", "norm_cfg": GN},
    "pafpn_lateral": {"type": "PAFPN", **PYRAMID, "add_extra_convs": "on_lateral"},
    "pafpn_output": {"type": "PAFPN", **PYRAMID, "add_extra_convs": "on_output"},
    "channels": {"type": "ChannelMapper", **LEVELS, "num_outs": 5},
    "channels_detr": {
        "type": "ChannelMapper", **LEVELS, "kernel_size": 1, "act_cfg": None, "norm_cfg": GN, "num_outs": 4,
    },
    "balanced": [
        {"type": "ChannelMapper", **LEVELS, "num_outs": 4},
        {"type": "BFP", "in_channels": 12, "num_levels": 4, "refine_level": 1, "refine_type": "non_local"},
    ],
    "balanced_conv": [
        {"type": "ChannelMapper", **LEVELS},
        {"type": "BFP", "in_channels": 12, "num_levels": 3, "refine_type": "conv"},
    ],
}
# fmt: on

# Shape, mean, standard deviation and projection of each output, computed with MMDetection 3.3.0.
EXPECTED = {
    "darknet": [
        ((2, 32, 64, 96), 0.4426564, 0.8346805, -1.155945),
        ((2, 256, 8, 12), 16.79771, 12.39742, 11.13615),
        ((2, 512, 4, 6), 74.52591, 54.82408, 53.81582),
    ],
    "csp_darknet": [
        ((2, 32, 8, 12), 0.01196087, 0.1292935, 0.03472966),
        ((2, 64, 4, 6), -0.01488359, 0.1308278, 0.1006594),
        ((2, 128, 2, 3), 0.00306523, 0.09219387, 0.0968503),
    ],
    "csp_darknet_p6": [
        ((2, 8, 32, 48), 0.2245478, 0.6063041, 0.0203332),
        ((2, 64, 4, 6), 0.01043423, 0.1093509, -0.1264164),
        ((2, 128, 1, 2), 0.01422617, 0.104752, -0.07646448),
    ],
    "cspnext": [
        ((2, 32, 8, 12), -0.003526072, 0.09532481, -0.07161821),
        ((2, 64, 4, 6), -0.001131371, 0.100797, 0.01758784),
        ((2, 128, 2, 3), 0.008797446, 0.0794291, 0.07555337),
    ],
    "cspnext_p6": [
        ((2, 8, 32, 48), 0.0416089, 0.2797919, -0.1278157),
        ((2, 64, 4, 6), 0.01194397, 0.1197805, 0.03990306),
        ((2, 128, 1, 2), 0.005990378, 0.1177752, 0.006485606),
    ],
    "ssd_vgg": [
        ((2, 512, 8, 12), 0.1394726, 0.1796364, 0.1077994),
        ((2, 1024, 4, 6), 0.04906205, 0.08353591, -0.05083427),
    ],
    "mobilenet_v2": [
        ((2, 8, 16, 24), -0.2029315, 0.5354675, -0.1028052),
        ((2, 16, 8, 12), 0.121231, 0.8487231, 0.4494598),
        ((2, 32, 4, 6), 0.03365545, 0.6298721, 0.6334733),
        ((2, 1280, 2, 3), 0.1468707, 0.2242485, 0.08225349),
    ],
    "hrnet": [
        ((2, 6, 16, 24), 13.78031, 8.396011, 8.588279),
        ((2, 12, 8, 12), 8.052562, 8.893711, 5.963033),
        ((2, 24, 4, 6), 12.46961, 14.97993, -2.955702),
        ((2, 48, 2, 3), 6.215575, 8.551934, 0.1720457),
    ],
    "hrnet_finest": [
        ((2, 6, 16, 24), 10.33148, 8.396804, 7.520173),
    ],
    "yolov3": [
        ((2, 8, 4, 6), 0.07122082, 0.1265662, 0.0844871),
        ((2, 6, 8, 12), 0.1110875, 0.07708833, 0.04367435),
        ((2, 4, 16, 24), 0.06536961, 0.09184788, 0.1162459),
    ],
    "yolox": [
        ((2, 12, 16, 24), -0.00229037, 0.1144032, 0.0983844),
        ((2, 12, 8, 12), 0.03006428, 0.1423049, 0.09927437),
        ((2, 12, 4, 6), -0.0152201, 0.1241383, -0.03539066),
    ],
    "yolox_depthwise": [
        ((2, 12, 16, 24), 0.01396334, 0.1598887, 0.03352192),
        ((2, 12, 8, 12), -0.03002647, 0.06269283, -0.0137251),
        ((2, 12, 4, 6), 0.04898081, 0.1493155, -0.1227612),
    ],
    "rtmdet": [
        ((2, 12, 16, 24), 0.06538767, 0.3103237, -0.07427994),
        ((2, 12, 8, 12), 0.03460677, 0.08406084, 0.03559912),
        ((2, 12, 4, 6), 0.02339216, 0.1179283, 0.0043567),
    ],
    "ssd": [
        ((2, 6, 16, 24), 0.004162417, 0.4349586, 0.2606323),
        ((2, 8, 8, 12), 0.0318697, 1.143785, 0.07245157),
        ((2, 10, 4, 6), -0.009747119, 1.158573, 0.9855416),
        ((2, 12, 2, 3), 0.2247333, 0.3804424, 0.4119737),
        ((2, 8, 3, 4), 0.07284268, 0.09236716, -0.0007460578),
    ],
    "ssd_lite": [
        ((2, 6, 16, 24), 0.01349848, 1.15509, 0.7129149),
        ((2, 8, 8, 12), 0.0318697, 1.143785, 0.07245157),
        ((2, 10, 4, 6), -0.009747119, 1.158573, 0.9855416),
        ((2, 12, 2, 3), 0.2576868, 0.3854456, 0.2303758),
    ],
    "dilated": [
        ((2, 8, 4, 6), 0.525433, 1.282543, 0.3623224),
    ],
    "centernet": [
        ((2, 6, 16, 24), 0.04977546, 0.09813372, 0.08129687),
    ],
    "hrfpn": [
        ((2, 12, 16, 24), 0.0340918, 0.883911, 0.07948017),
        ((2, 12, 8, 12), 0.06498167, 0.6711586, 0.3502758),
        ((2, 12, 4, 6), 0.08815807, 0.5408365, 0.2285523),
        ((2, 12, 2, 3), 0.004098872, 0.2918798, 0.2282539),
    ],
    "hrfpn_max": [
        ((2, 12, 8, 12), -0.02291416, 0.8783745, 0.1199272),
        ((2, 12, 4, 6), -0.01628935, 0.9869269, -0.07518578),
        ((2, 12, 2, 3), -0.5421745, 0.9866483, -0.3427841),
    ],
    "pafpn": [
        ((2, 12, 16, 24), 0.09558219, 1.878934, 2.308784),
        ((2, 12, 8, 12), 0.08886031, 2.189244, 0.9079867),
        ((2, 12, 4, 6), -0.0283928, 1.895062, -0.5475408),
        ((2, 12, 2, 3), 0.1994935, 1.941046, -0.8902379),
    ],
    "pafpn_input": [
        ((2, 12, 8, 12), 0.07796028, 1.005129, 0.1942608),
        ((2, 12, 4, 6), 0.04823913, 1.148991, -0.440315),
        ((2, 12, 2, 3), 0.05838355, 0.9308879, -0.7871686),
        ((2, 12, 1, 2), 0.09277871, 1.050531, 0.2144216),
        ((2, 12, 1, 1), 0.06372946, 1.046428, 0.02416878),
    ],
    "pafpn_lateral": [
        ((2, 12, 8, 12), 0.03137918, 1.499455, 0.820802),
        ((2, 12, 4, 6), 0.02642933, 1.576121, 1.066311),
        ((2, 12, 2, 3), -0.2105243, 1.106036, 0.1772567),
        ((2, 12, 1, 2), 0.01337628, 0.5239487, -0.08525585),
        ((2, 12, 1, 1), 0.1183344, 0.2228561, 0.09837052),
    ],
    "pafpn_output": [
        ((2, 12, 8, 12), 0.03137918, 1.499455, 0.820802),
        ((2, 12, 4, 6), 0.02642933, 1.576121, 1.066311),
        ((2, 12, 2, 3), 0.1012574, 1.359793, 0.8213189),
        ((2, 12, 1, 2), 0.1128792, 0.7679273, -0.1943542),
        ((2, 12, 1, 1), 0.2299797, 0.3122116, 0.09128262),
    ],
    "channels": [
        ((2, 12, 16, 24), 0.4422807, 0.6572253, -0.6260955),
        ((2, 12, 8, 12), 0.4346086, 0.6227194, 1.064533),
        ((2, 12, 4, 6), 0.4887334, 0.6407615, 0.7380538),
        ((2, 12, 2, 3), 0.4949322, 0.6762476, 0.4541334),
        ((2, 12, 1, 2), 0.2515308, 0.3354163, -0.1702061),
    ],
    "channels_detr": [
        ((2, 12, 16, 24), 0.07606899, 1.123348, -0.2515874),
        ((2, 12, 8, 12), 0.0587562, 0.964251, 0.2448641),
        ((2, 12, 4, 6), 0.02563774, 1.08453, -1.036543),
        ((2, 12, 2, 3), 0.05838355, 0.9308879, -0.7871686),
    ],
    "balanced": [
        ((2, 12, 16, 24), 1.066192, 0.9687296, -0.2707344),
        ((2, 12, 8, 12), 1.05852, 0.9789723, 1.592144),
        ((2, 12, 4, 6), 1.380175, 0.9839575, 1.659373),
        ((2, 12, 2, 3), 1.680951, 1.028927, 1.062025),
    ],
    "balanced_conv": [
        ((2, 12, 16, 24), 0.9470739, 0.9283469, -1.228042),
        ((2, 12, 8, 12), 0.9394016, 0.9247313, 1.915235),
        ((2, 12, 4, 6), 0.9935266, 0.9141716, 1.519135),
    ],
}

PERIOD = 4099
# Levels that are coarser than all that is asked for.
UNUSED = {"darknet": "0.conv_res_block5."}


def inputs_of(name):
    if name in BACKBONES:
        return rule_tensor([2, 3, 64, 96], -2, 2, 1000)
    return tuple(
        rule_tensor([2, c, 16 >> level, 24 >> level], -2, 2, 1000 + level) for level, c in enumerate((6, 8, 10))
    )


def built(config):
    """One part after the other, with the rule's weights; initial ones would take long."""
    with torch.device("meta"):
        part = nn.Sequential(*map(MODELS.build, config if isinstance(config, list) else [config]))
    part.to_empty(device="cpu")
    part.load_state_dict(rule_weights(part, PERIOD))
    return part


@pytest.mark.parametrize("name", EXPECTED)
def test_features(name):
    part = built((BACKBONES | NECKS)[name]).eval()
    with torch.no_grad():
        outs = part(inputs_of(name))
    for out, (shape, *figures) in zip(outs, EXPECTED[name], strict=True):
        assert tuple(out.shape) == shape
        found = torch.tensor([out.mean(), out.std(), projection(out)])
        torch.testing.assert_close(found, torch.tensor(figures), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", EXPECTED)
def test_gradients_reach_every_weight(name):
    """But for those that lead to no output."""
    part = built((BACKBONES | NECKS)[name]).train()
    outs = part(inputs_of(name))
    sum((out * rule_tensor(list(out.shape), -1, 1, 3)).sum() for out in outs).backward()
    without = [key for key, p in part.named_parameters() if p.grad is None]
    assert [key for key in without if not key.startswith(UNUSED.get(name, "-"))] == []
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)
