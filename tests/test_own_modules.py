"""The modules of docs/own_modules.md, as they stand there: short, registered, swapped in by config, and called."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.config import load
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own_modules.md").read_text()
BASE = ROOT / "configs/retinanet/retinanet_r18_fpn_shapes.py"
# File, source and config of each module.
SNIPPETS = re.findall(r"`my_modules/(\w+)\.py`:\n\n```python\n(.*?)```\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL)
NAMES = {
    "losses": "CharbonnierLoss",
    "assigners": "ThresholdAssigner",
    "samplers": "NearMissSampler",
    "coders": "CornerCoder",
    "priors": "CentredSquares",
}
SMALL = {
    "model.backbone.base_channels": 8,
    "model.neck.in_channels": [8, 16, 32],
    "model.neck.out_channels": 16,
    "model.bbox_head.in_channels": 16,
    "model.bbox_head.feat_channels": 16,
    "model.bbox_head.stacked_convs": 1,
}


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """RetinaNet of a child config that has the package beside it; everything imported and registered is undone."""

    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of the config goes there

    def build(wanted, **overrides):
        package = tmp_path / "my_modules"
        package.mkdir()
        source, config = next((source, config) for file, source, config in SNIPPETS if file == wanted)
        (package / f"{wanted}.py").write_text(source)
        child = tmp_path / "mine.py"
        child.write_text(f'_base_ = "{BASE}"\n{config}')
        torch.manual_seed(0)
        model = MODELS.build(load(child, {**SMALL, **overrides}).model)
        model.init_weights()
        return model

    yield build
    for name in NAMES.values():
        MODELS.module_dict.pop(name, None)
        TASK_UTILS.module_dict.pop(name, None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_modules"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def count_calls(monkeypatch, owner, *methods):
    """How often each method of a class is called from here on."""
    calls = dict.fromkeys(methods, 0)

    def counted(name, original):
        def wrapper(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return wrapper

    for name in methods:
        monkeypatch.setattr(owner, name, counted(name, getattr(owner, name)))
    return calls


def sample(boxes, labels, shape=(64, 64), ignored=()):
    found = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
    found.gt_instances = InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.tensor(labels).long())
    found.ignored_instances = InstanceData(bboxes=torch.tensor(ignored).view(-1, 4), labels=torch.zeros(len(ignored)))
    return found


def step(model):
    """Losses and backward of a batch with two objects and an ignored region, one object in a smaller image, none."""
    samples = [
        sample([[4.0, 4.0, 22.0, 24.0], [20.0, 10.0, 60.0, 50.0]], [0, 2], ignored=[[0.0, 0.0, 20.0, 20.0]]),
        sample([[10.0, 12.0, 40.0, 40.0]], [1], shape=(32, 60)),
        sample([], []),
    ]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *s.img_shape), generator=generator).byte() for s in samples]
    data = model.data_preprocessor({"inputs": images, "data_samples": samples}, True)
    losses = model.loss(data["inputs"], data["data_samples"])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_bbox"] > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    return data["inputs"], data["data_samples"]


def predict(model, inputs, samples):
    model.eval()
    model.bbox_head.retina_cls.bias.data.fill_(-1)
    with torch.no_grad():
        found = [s.pred_instances for s in model.predict(inputs, samples)]
    for image, one in zip(samples, found, strict=True):
        height, width = image.img_shape
        assert len(one) > 0
        assert (one.bboxes >= 0).all()
        assert (one.bboxes <= one.bboxes.new_tensor([width, height, width, height])).all()


def test_the_page_has_all_five():
    assert [file for file, _, _ in SNIPPETS] == list(NAMES)
    assert len(re.findall("```python", PAGE)) == 2 * len(SNIPPETS)


@pytest.mark.parametrize(("file", "source", "config"), SNIPPETS, ids=list(NAMES))
def test_each_is_complete_in_fifteen_lines(file, source, config):
    assert len(source.splitlines()) <= 15
    assert all(len(line) <= 120 for line in source.splitlines())
    assert f'imports=["my_modules.{file}"]' in config
    assert f'type="{NAMES[file]}"' in config


def test_a_loss(own_model, monkeypatch):
    model = own_model("losses")
    own = model.bbox_head.loss_bbox
    assert type(own).__name__ == "CharbonnierLoss"
    assert own.eps == 0.05
    calls = count_calls(monkeypatch, type(own), "elementwise")
    step(model)
    assert calls == {"elementwise": 1}
    # The hypotenuse of 0.12 and 0.05 is 0.13.
    torch.testing.assert_close(own(torch.tensor([[0.12]]), torch.zeros(1, 1)), torch.tensor(0.08))


def test_an_assigner(own_model, monkeypatch):
    model = own_model("assigners")
    own = model.bbox_head.train_cfg.assigner
    assert type(own).__name__ == "ThresholdAssigner"
    calls = count_calls(monkeypatch, type(own), "assign")
    step(model)
    assert calls == {"assign": 3}
    # Of two objects the one of higher IoU, 0.6 over 0.5; background at 0.4; the background where there are no objects.
    priors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 10]])
    gt = InstanceData(bboxes=torch.tensor([[0.0, 0, 5, 10], [0, 0, 10, 6], [20, 20, 30, 30]]), labels=torch.arange(3))
    own.min_iou = 0.55
    result = own.assign(InstanceData(priors=priors), gt)
    assert result.gt_inds.tolist() == [2, 1]
    assert result.labels.tolist() == [1, 0]
    none = own.assign(InstanceData(priors=priors), gt[:0])
    assert none.gt_inds.tolist() == [0, 0]
    assert none.labels.tolist() == [-1, -1]


def test_a_sampler(own_model, monkeypatch):
    model = own_model("samplers")
    own = model.bbox_head.train_cfg.sampler
    assert type(own).__name__ == "NearMissSampler"
    calls = count_calls(monkeypatch, type(own), "sample")
    seen = []
    monkeypatch.setattr(
        model.bbox_head.loss_cls,
        "forward",
        lambda pred, target, weight, avg_factor: seen.append((target, weight)) or pred.sum() * 0,
    )
    step(model)
    assert calls == {"sample": 3}
    target, weight = seen[0]
    negative = (target == model.bbox_head.num_classes).view(3, -1)
    assert (weight.view(3, -1) * negative).sum(dim=1).tolist() == [64, 64, 64]


def test_a_coder(own_model, monkeypatch):
    model = own_model("coders")
    own = model.bbox_head.bbox_coder
    assert type(own).__name__ == "CornerCoder"
    calls = count_calls(monkeypatch, type(own), "encode", "decode")
    predict(model, *step(model))
    assert calls == {"encode": 1, "decode": 1}
    priors, boxes = torch.tensor([[10.0, 10, 20, 30]]), torch.tensor([[15.0, 10, 20, 40]])
    assert own.encode(priors, boxes).tolist() == [[0.5, 0, 0, 0.5]]
    torch.testing.assert_close(own.decode(priors, own.encode(priors, boxes)), boxes)


def test_a_prior_generator(own_model, monkeypatch):
    model = own_model("priors")
    own = model.bbox_head.prior_generator
    assert type(own).__name__ == "CentredSquares"
    calls = count_calls(monkeypatch, type(own), "grid_priors", "valid_flags")
    predict(model, *step(model))
    assert calls["grid_priors"] == 2
    assert calls["valid_flags"] == 3
    assert own.num_base_priors == [2, 2, 2]
    assert own.grid_priors([(1, 2)] * 3)[0].tolist() == [
        [-4, -4, 12, 12],
        [-8, -8, 16, 16],
        [4, -4, 20, 12],
        [0, -8, 24, 16],
    ]


def test_a_wrong_argument_is_refused_by_name(own_model):
    with pytest.raises(TypeError, match=r"model.train_cfg.assigner.mn_iou: ThresholdAssigner .*did you mean .*min_iou"):
        own_model("assigners", **{"+model.train_cfg.assigner.mn_iou": 0.3})
