"""Names and shapes of the backbones of MMDetection's configs whose detectors are not shipped, or not yet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from detkit.registry import MODELS

SWIN_B = {"type": "SwinTransformer", "embed_dims": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
PVT, PVT2 = {"type": "PyramidVisionTransformer"}, {"type": "PyramidVisionTransformerV2"}
CONFIGS = {
    "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py": {"type": "SwinTransformer"},
    "rtmdet/rtmdet_l_swin_b_4xb32-100e_coco.py": SWIN_B | {"window_size": 12, "out_indices": (1, 2, 3)},
    "dyhead/atss_swin-l-p4-w12_fpn_dyhead_ms-2x_coco.py": SWIN_B
    | {"embed_dims": 192, "num_heads": [6, 12, 24, 48], "window_size": 12, "out_indices": (1, 2, 3)},
    "pvt/retinanet_pvt-s_fpn_1x_coco.py": PVT,
    "pvt/retinanet_pvt-m_fpn_1x_coco.py": PVT | {"num_layers": [3, 4, 18, 3]},
    "pvt/retinanet_pvt-l_fpn_1x_coco.py": PVT | {"num_layers": [3, 8, 27, 3]},
    "pvt/retinanet_pvtv2-b1_fpn_1x_coco.py": PVT2 | {"num_layers": [2, 2, 2, 2]},
}


@pytest.fixture(scope="module")
def reference():
    with gzip.open(Path(__file__).parents[2] / "data" / "state_dicts.json.gz", "rt") as file:
        return json.load(file)


@pytest.mark.parametrize("name", CONFIGS)
def test_backbone_of(name, reference):
    with torch.device("meta"):
        backbone = MODELS.build(CONFIGS[name])
    found = {f"backbone.{key}": list(value.shape) for key, value in backbone.state_dict().items()}
    expected = {key: shape for key, shape in reference[name]["keys"].items() if key.startswith("backbone.")}
    assert found == expected
