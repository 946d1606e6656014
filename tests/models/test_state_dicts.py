"""Backbones and necks as MMDetection's configs put them together: names and shapes of their weights."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.registry import MODELS

YOLOX_NECK = {"type": "YOLOXPAFPN", "in_channels": [128, 256, 512], "out_channels": 128, "num_csp_blocks": 1}
RTMDET_NECK = {**YOLOX_NECK, "type": "CSPNeXtPAFPN"}
VGG = {"type": "SSDVGG", "depth": 16, "out_indices": (3, 4), "out_feature_indices": (22, 34)}
SSD_NECK = {"type": "SSDNeck", "in_channels": (512, 1024)}
RESNET_50 = [256, 512, 1024, 2048]


def hrnet(width):
    """HRNetV2p of a width."""

    def stage(modules, blocks, *channels, block="BASIC"):
        return {
            "num_modules": modules,
            "num_branches": len(channels),
            "block": block,
            "num_blocks": (blocks,) * len(channels),
            "num_channels": channels,
        }

    return {
        "type": "HRNet",
        "extra": {
            "stage1": stage(1, 4, 64, block="BOTTLENECK"),
            "stage2": stage(1, 4, width, width * 2),
            "stage3": stage(4, 4, width, width * 2, width * 4),
            "stage4": stage(3, 4, width, width * 2, width * 4, width * 8),
        },
    }


CONFIGS = {
    "yolo/yolov3_d53_8xb8-ms-416-273e_coco.py": {
        "backbone": {"type": "Darknet", "depth": 53, "out_indices": (3, 4, 5)},
        "neck": {
            "type": "YOLOV3Neck", "num_scales": 3, "in_channels": [1024, 512, 256], "out_channels": [512, 256, 128],
        },
    },
    "yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco.py": {
        "backbone": {
            "type": "MobileNetV2", "out_indices": (2, 4, 6), "act_cfg": {"type": "LeakyReLU", "negative_slope": 0.1},
        },
        "neck": {"type": "YOLOV3Neck", "num_scales": 3, "in_channels": [320, 96, 32], "out_channels": [96, 96, 96]},
    },
    "yolox/yolox_s_8xb8-300e_coco.py": {
        "backbone": {"type": "CSPDarknet", "deepen_factor": 0.33, "widen_factor": 0.5},
        "neck": YOLOX_NECK,
    },
    "yolox/yolox_m_8xb8-300e_coco.py": {
        "backbone": {"type": "CSPDarknet", "deepen_factor": 0.67, "widen_factor": 0.75},
        "neck": YOLOX_NECK | {"in_channels": [192, 384, 768], "out_channels": 192, "num_csp_blocks": 2},
    },
    "rtmdet/rtmdet_s_8xb32-300e_coco.py": {
        "backbone": {"type": "CSPNeXt", "deepen_factor": 0.33, "widen_factor": 0.5},
        "neck": RTMDET_NECK,
    },
    "rtmdet/rtmdet_l_8xb32-300e_coco.py": {
        "backbone": {"type": "CSPNeXt"},
        "neck": RTMDET_NECK | {"in_channels": [256, 512, 1024], "out_channels": 256, "num_csp_blocks": 3},
    },
    "ssd/ssd300_coco.py": {
        "backbone": VGG,
        "neck": SSD_NECK | {
            "out_channels": (512, 1024, 512, 256, 256, 256), "level_strides": (2, 2, 1, 1),
            "level_paddings": (1, 1, 0, 0),
        },
    },
    "ssd/ssd512_coco.py": {
        "backbone": VGG,
        "neck": SSD_NECK | {
            "out_channels": (512, 1024, 512, 256, 256, 256, 256), "level_strides": (2, 2, 2, 2, 1),
            "level_paddings": (1, 1, 1, 1, 1), "last_kernel_size": 4,
        },
    },
    "centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py": {
        "neck": {
            "type": "CTResNetNeck", "in_channels": 512, "num_deconv_filters": (256, 128, 64),
            "num_deconv_kernels": (4, 4, 4),
        },
    },
    "yolof/yolof_r50-c5_8xb8-1x_coco.py": {
        "neck": {
            "type": "DilatedEncoder", "in_channels": 2048, "out_channels": 512, "block_mid_channels": 128,
            "num_residual_blocks": 4, "block_dilations": [2, 4, 6, 8],
        },
    },
    "hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-2x_coco.py": {
        "backbone": hrnet(18),
        "neck": {"type": "HRFPN", "in_channels": [18, 36, 72, 144], "out_channels": 256, "stride": 2, "num_outs": 5},
    },
    "hrnet/faster-rcnn_hrnetv2p-w40_2x_coco.py": {
        "backbone": hrnet(40),
        "neck": {"type": "HRFPN", "in_channels": [40, 80, 160, 320], "out_channels": 256},
    },
    "pafpn/faster-rcnn_r50_pafpn_1x_coco.py": {
        "neck": {"type": "PAFPN", "in_channels": RESNET_50, "out_channels": 256, "num_outs": 5},
    },
    "libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py": {
        "neck": [
            {
                "type": "FPN", "in_channels": RESNET_50, "out_channels": 256, "start_level": 1,
                "add_extra_convs": "on_input", "num_outs": 5,
            },
            {"type": "BFP", "in_channels": 256, "num_levels": 5, "refine_level": 1, "refine_type": "non_local"},
        ],
    },
    "detr/detr_r50_8xb2-150e_coco.py": {
        "neck": {
            "type": "ChannelMapper", "in_channels": [2048], "kernel_size": 1, "out_channels": 256, "act_cfg": None,
            "num_outs": 1,
        },
    },
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py": {
        "neck": {
            "type": "ChannelMapper", "in_channels": [512, 1024, 2048], "kernel_size": 1, "out_channels": 256,
            "act_cfg": None, "norm_cfg": {"type": "GN", "num_groups": 32}, "num_outs": 4,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    with gzip.open(Path(__file__).parents[1] / "data" / "state_dicts.json.gz", "rt") as file:
        return json.load(file)


def built(config):
    """A part, or, of a list as of necks, its parts by number."""
    return nn.Sequential(*map(MODELS.build, config)) if isinstance(config, list) else MODELS.build(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_of(name, reference):
    with torch.device("meta"):
        parts = nn.ModuleDict({part: built(config) for part, config in CONFIGS[name].items()})
    found = {key: list(value.shape) for key, value in parts.state_dict().items()}
    expected = {key: shape for key, shape in reference[name]["keys"].items() if key.split(".")[0] in CONFIGS[name]}
    assert found == expected
