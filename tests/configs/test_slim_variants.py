"""Every method's variant on the example data: some steps of it, whatever the batch holds, without waiting.

What a method reads back from the device is named in ``WAITS``.
"""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
import torchvision
from host_reads import HostReads
from mmengine.structures import InstanceData
from no_sync import NoSync
from numpy.random import RandomState
from shipped import SHIPPED, config_of, name_of, parametrized

from detkit.datasets.shapes.scene import draw_scene
from detkit.registry import MODELS
from detkit.structures import BitmapMasks, DetDataSample

SLIM = [path for path in SHIPPED if path.stem.endswith("_shapes")]
# Config -> how often its training step waits for the device, and why.
WAITS: dict[str, tuple[int, str]] = {
    "cascade_rcnn/cascade-mask-rcnn_r18_fpn_shapes.py": (1, "which regions are positive"),
    "htc/htc_r18_fpn_shapes.py": (1, "which regions are positive"),
    "scnet/scnet_r18_fpn_shapes.py": (1, "which regions are positive"),
    "mask_rcnn/mask-rcnn_r18_fpn_shapes.py": (1, "which regions are positive"),
    "double_heads/dh-faster-rcnn_r18_fpn_shapes.py": (1, "which regions are no padding, for batch norms"),
    "ms_rcnn/ms-rcnn_r18_fpn_shapes.py": (1, "which regions are positive"),
    "point_rend/point-rend_r18_fpn_shapes.py": (1, "which regions are positive"),
}
STEPS = 3


class CountWaits(NoSync):
    """Lets pass what it would forbid, and notes it."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        except AssertionError as error:
            self.found.append(str(error))
            return func(*args, **(kwargs or {}))


def brought(reads: HostReads) -> int:
    """Whole tensors that were brought to the host; on a CPU no operation shows it."""
    return reads.counts["cpu"] + reads.counts["tolist"]


def draw(seed: int, empty: bool) -> tuple[torch.Tensor, DetDataSample]:
    """An image of the example data, RGB, and its objects."""
    scene = draw_scene(RandomState([seed, 0]))
    boxes, labels = [], []
    for category, mask in zip(scene.category_ids, scene.masks, strict=True):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        labels.append(category // 2)  # 1, 3, 4, 7, 9
    count = 0 if empty else len(boxes)
    shape = scene.image.shape[:2]
    sample = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes[:count], dtype=torch.float32).view(-1, 4),
        labels=torch.tensor(labels[:count]).long(),
        masks=BitmapMasks(scene.masks[:count].astype(np.uint8), *shape),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return torch.from_numpy(scene.image).permute(2, 0, 1).contiguous(), sample


DRAWN = {empty: [draw(seed, empty) for seed in (3, 5)] for empty in (False, True)}
BATCHES = {"all": (False, False), "some": (False, True), "none": (True, True)}


def raw_batch(kind: str):
    """As a data loader gives it."""
    pairs = [DRAWN[empty][index] for index, empty in enumerate(BATCHES[kind])]
    return {"inputs": [image for image, _ in pairs], "data_samples": copy.deepcopy([sample for _, sample in pairs])}


def batch_of(model, kind: str, training: bool = True):
    data = model.data_preprocessor(raw_batch(kind), training)
    return data["inputs"], data["data_samples"]


def total_of(model, inputs, samples):
    """The sum of a step's losses, each of them finite."""
    total, logged = model.parse_losses(model.loss(inputs, samples))
    for name, value in logged.items():
        assert value.device.type == "meta" or torch.isfinite(value), name
    return total


def model_of(path):
    """The config's model with new weights, in training."""
    cfg = config_of(path).model
    if "score_thr" in cfg.get("test_cfg", {}):
        cfg.test_cfg.score_thr = 0.0  # of a network that has not learnt yet
    torch.manual_seed(0)
    built = MODELS.build(cfg)
    built.init_weights()
    return built.train()


@pytest.fixture
def model(path):
    return model_of(path)


def gradients_are_finite(model):
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return len(found) > 0 and bool(torch.stack([torch.isfinite(grad).all() for grad in found]).all())


@parametrized(SLIM)
def test_steps_on_full_mixed_and_empty_batches_then_predictions(path, model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for kind in BATCHES:
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        for _ in range(STEPS):
            inputs, samples = batch_of(model, kind)
            total = total_of(model, inputs, samples)
            optimizer.zero_grad()
            total.backward()
            assert gradients_are_finite(model), kind
            optimizer.step()
        after = dict(model.named_parameters())
        assert any(not torch.equal(after[name], value) for name, value in before.items()), kind
    expect_detections(model)


def expect_detections(model):
    model.eval()
    inputs, samples = batch_of(model, "all", training=False)
    with torch.no_grad():
        results = model.predict(inputs, samples)
    for sample in results:
        found = sample.pred_instances
        height, width = sample.ori_shape
        assert len(found) > 0
        assert found.bboxes.shape == (len(found), 4)
        assert torch.isfinite(found.bboxes).all()
        assert (found.bboxes[:, :2] <= found.bboxes[:, 2:]).all()
        # Boxes are cut at the image, or hang over it by their own size at most.
        assert found.bboxes.abs().max() <= 3 * max(height, width)
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert (found.scores.diff() <= 0).all()
        assert ((found.labels >= 0) & (found.labels < 5)).all()
        if "masks" in found:
            assert found.masks.dtype == torch.bool
            assert found.masks.shape == (len(found), height, width)


@pytest.fixture
def groups_of_one(monkeypatch):
    """Suppression by which PISA's sampler groups predictions: as torchvision's it is let off, and keeps all."""
    monkeypatch.setattr(
        sys.modules["detkit.ops.nms_match"], "_unsuppressed", lambda beats: torch.ones_like(beats[:, 0])
    )


@pytest.mark.usefixtures("groups_of_one")
@pytest.mark.parametrize("kind", ["some", "none"])
@parametrized(SLIM)
def test_a_step_waits_for_the_device_as_often_as_is_said(path, kind, model):
    inputs, samples = batch_of(model, kind)
    with HostReads() as reads, CountWaits() as waits:
        total, _ = model.parse_losses(model.loss(inputs, samples))
        total.backward()
    expected, _ = WAITS.get(name_of(path), (0, ""))
    assert len(waits.found) + brought(reads) == expected, (waits.found, reads.counts)


@pytest.mark.usefixtures("groups_of_one")
@parametrized([path for path in SLIM if name_of(path) not in WAITS])
def test_a_step_needs_no_value(path, model, monkeypatch):
    """On the meta device there are none to look at; suppression, whose result has no fixed length, keeps all."""
    monkeypatch.setattr(torchvision.ops, "nms", lambda boxes, *_: torch.arange(len(boxes), device=boxes.device))
    inputs, samples = batch_of(model, "some")
    model.to("meta")
    total = total_of(model, inputs.to("meta"), [sample.to("meta") for sample in samples])
    total.backward()
    assert total.shape == ()


@parametrized(SLIM)
def test_a_step_in_bfloat16_is_finite(path, model):
    inputs, samples = batch_of(model, "some")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = total_of(model, inputs, samples)
    assert total.dtype == torch.float32
    total.backward()
    assert gradients_are_finite(model)


def test_what_waits_exists():
    assert WAITS.keys() <= {name_of(path) for path in SLIM}
    assert all(count > 0 and reason for count, reason in WAITS.values())


@pytest.mark.parametrize("read", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu().numpy()])
def test_what_waits_is_counted(read):
    with HostReads() as reads, CountWaits() as waits:
        read(torch.ones(3))
    assert len(waits.found) + brought(reads) == 1
