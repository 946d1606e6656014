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
CONFIGS = {
    "yolo/yolov3_d53_8xb8-ms-416-273e_coco.py": {
        "backbone": {"type": "Darknet", "depth": 53, "out_indices": (3, 4, 5)},
        "neck": {
            "type": "YOLOV3Neck", "num_scales": 3, "in_channels": [1024, 512, 256], "out_channels": [512, 256, 128],
        },
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
