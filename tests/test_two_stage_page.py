"""The parts of docs/two_stage.md, as they stand there: swapped into Mask R-CNN by config, trained a step; its names."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import named
from mmengine.structures import InstanceData

from detkit.config import load
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import BitmapMasks, DetDataSample

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/two_stage.md").read_text()
BASE = ROOT / "configs/mask_rcnn/mask-rcnn_r18_fpn_shapes.py"
# File, source and config of each part.
SNIPPETS = re.findall(r"`my_modules/(\w+)\.py`:\n\n```python\n(.*?)```\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
NAMES = {"samplers": "LargestNegativesSampler", "box_heads": "PooledBBoxHead", "mask_heads": "SmoothMaskHead"}


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """Mask R-CNN of a child config that has the package beside it; everything imported and registered is undone."""

    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of the config goes there

    def build(wanted):
        (tmp_path / "my_modules").mkdir()
        source, config = next((source, config) for file, source, config in SNIPPETS if file == wanted)
        (tmp_path / "my_modules" / f"{wanted}.py").write_text(source)
        (tmp_path / "mine.py").write_text(f'_base_ = "{BASE}"\n{config}')
        torch.manual_seed(0)
        model = MODELS.build(load(tmp_path / "mine.py").model)
        model.init_weights()
        return model

    yield build
    for name in NAMES.values():
        MODELS.module_dict.pop(name, None)
        TASK_UTILS.module_dict.pop(name, None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_modules"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def step(model):
    """Losses of a batch of two images, the second without objects; gradients reach every parameter."""
    samples = []
    for objects in ([[4, 4, 22, 24], [20, 10, 60, 50]], []):
        sample = DetDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "scale_factor": (1.0, 1.0)})
        masks = np.zeros((len(objects), 64, 64), dtype=np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, objects, strict=True):
            mask[y1:y2, x1:x2] = 1
        boxes = torch.tensor(objects, dtype=torch.float32).view(-1, 4)
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.arange(len(objects)), masks=BitmapMasks(masks, 64, 64)
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    images = [torch.randint(0, 256, (3, 64, 64)).byte() for _ in samples]
    data = model.data_preprocessor({"inputs": images, "data_samples": samples}, True)
    total, losses = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
    total.backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    return losses


@pytest.mark.parametrize("wanted", NAMES)
def test_a_part_of_the_page_is_swapped_in_by_config_and_learns(own_model, wanted):
    model = own_model(wanted).train()
    head = model.roi_head
    part = {"samplers": head.train_cfg.sampler, "box_heads": head.bbox_head, "mask_heads": head.mask_head}[wanted]
    assert type(part).__name__ == NAMES[wanted]
    losses = step(model)
    assert losses["loss_mask"] > 0
    assert losses["loss_bbox"] > 0


def test_the_sampler_takes_the_largest(own_model):
    sampler = own_model("samplers").roi_head.train_cfg.sampler
    rule = sampler.negative_rule
    boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 9, 9], [0, 0, 6, 6]]])
    keys = rule(None, None, type("Pool", (), {"priors": boxes}))
    assert keys.argmax() == 1


def test_every_part_of_the_page_is_tried():
    assert [file for file, _, _ in SNIPPETS] == list(NAMES)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(detkit\.[\w.]+)`", PAGE))))
def test_what_the_page_names_is_there(name):
    assert named(name) is not None
