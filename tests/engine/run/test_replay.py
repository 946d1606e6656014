"""A step done again from its bundle: the same losses to the bit, and the image they came from."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.engine_toys import ToyModel
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData, PixelData

from detkit.config import load
from detkit.datasets.shapes import generate
from detkit.engine import Runner, save_checkpoint_file
from detkit.engine.diagnosis.bundle import batch_from_plain, batch_to_plain
from detkit.engine.run.replay import replay
from detkit.registry import MODELS, TRANSFORMS
from detkit.structures import DetDataSample
from detkit.structures.masks import BitmapMasks, PolygonMasks

REPOSITORY = Path(__file__).resolve().parents[3]


@MODELS.register_module()
class RootToy(ToyModel):
    """Takes the square root of what is negative for one sample."""

    def forward(self, inputs, data_samples=None, mode="tensor"):
        losses = super().forward(inputs, data_samples, mode)
        if mode == "loss":
            # 0.5 or more but for sample 5, of which it is -0.5
            values = (torch.stack(list(inputs))[:, 3] - 5).square() - 0.5 + 0 * losses["loss_bbox"]
            losses["loss_root"] = values.sqrt().mean()
        return losses


@pytest.fixture
def bundle(make_runner) -> Path:
    """Of the iteration that sample 5 is in."""

    def make(**changes) -> Path:
        model = {"type": "RootToy", "bbox_head": {"type": "ToyHead"}}
        hooks = {"logger": {"type": "LoggerHook", "interval": 2, "tensorboard": False}}
        hooks["invalid_loss"] = {"type": "CheckInvalidLossHook", "interval": 1}
        runner = make_runner(model=model, default_hooks=hooks, **changes)
        with pytest.raises(FloatingPointError, match="at iteration"):
            runner.train()
        (path,) = Path(runner.work_dir).glob("invalid_loss_iter_*/bundle.pth")
        return path

    return make


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_the_losses_are_those_of_the_run_and_the_image_is_named(bundle, dtype):
    wrapper = {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}}
    if dtype is not None:
        wrapper |= {"type": "AmpOptimWrapper", "dtype": dtype}
    path = bundle(optim_wrapper=wrapper)
    result = replay(path, "cpu")
    assert math.isnan(result.recorded["loss_root"])
    assert math.isfinite(result.recorded["loss_cls"])  # so equality means something
    assert result.identical
    assert result.bad_images == ["images/5.jpg"]
    assert len(result.images) == 4
    assert "BAD  images/5.jpg" in str(result)
    assert result.backward is None


def test_another_weight_is_seen_as_a_difference(bundle):
    path = bundle()
    state = torch.load(path, weights_only=True)
    state["weights"]["bbox_head.fc.weight"][0, 0] += 1e-3
    save_checkpoint_file(state, path)
    result = replay(path, "cpu")
    assert not result.identical
    assert "the losses are not those of the run" in str(result)


def test_anomaly_names_the_operation(bundle):
    result = replay(bundle(), "cpu", anomaly=True)
    assert "SqrtBackward0" in result.backward
    assert "test_replay.py" in result.backward  # where the forward pass called it
    assert result.identical


def test_the_tool_prints_it(bundle, capsys):
    spec = importlib.util.spec_from_file_location("tools_replay", REPOSITORY / "tools/replay.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.replay(tool.parse_args([str(bundle()), "--device", "cpu", "--anomaly"]))
    printed = capsys.readouterr().out
    assert "the losses are those of the run to the bit" in printed
    assert "BAD  images/5.jpg" in printed
    assert "SqrtBackward0" in printed


def test_what_is_no_bundle_is_refused(tmp_path, bundle):
    save_checkpoint_file({"state_dict": {}}, tmp_path / "epoch_1.pth")
    with pytest.raises(ValueError, match=r"epoch_1\.pth: is no bundle of a training step"):
        replay(tmp_path / "epoch_1.pth")
    path = bundle()
    state = torch.load(path, weights_only=True)
    save_checkpoint_file({**state, "batch": None}, path)
    with pytest.raises(ValueError, match="holds no batch"):
        replay(path)


def test_batches_survive_the_file():
    sample = DetDataSample(metainfo={"img_path": "a.jpg", "scale_factor": (1.0, 2.0), "border": np.array([1.0, 2.0])})
    bitmaps = BitmapMasks(np.eye(4, dtype=np.uint8)[None], 4, 4)
    polygons = PolygonMasks([[np.array([0.0, 0, 3, 0, 3, 3])]], 4, 4)
    sample.gt_instances = InstanceData(bboxes=torch.ones(1, 4), labels=torch.tensor([2]), masks=bitmaps)
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), masks=polygons[:0])
    sample.gt_sem_seg = PixelData(sem_seg=torch.ones(1, 4, 4))
    batch = {"inputs": [torch.arange(3, dtype=torch.uint8)], "data_samples": [sample], "what": object()}
    again = batch_from_plain(batch_to_plain(batch))
    (other,) = again["data_samples"]
    assert isinstance(other, DetDataSample)
    assert torch.equal(again["inputs"][0], batch["inputs"][0])
    assert other.scale_factor == (1.0, 2.0)
    np.testing.assert_array_equal(other.border, sample.border)
    assert torch.equal(other.gt_instances.bboxes, sample.gt_instances.bboxes)
    np.testing.assert_array_equal(other.gt_instances.masks.masks, bitmaps.masks)
    assert isinstance(other.ignored_instances.masks, PolygonMasks)
    assert len(other.ignored_instances) == 0
    assert torch.equal(other.gt_sem_seg.sem_seg, sample.gt_sem_seg.sem_seg)
    polygon = batch_from_plain(batch_to_plain(polygons))
    np.testing.assert_array_equal(polygon.masks[0][0], polygons.masks[0][0])
    assert again["what"].startswith("<object object")


@TRANSFORMS.register_module()
class PoisonPixel(BaseTransform):
    """Makes one image's first pixel what no image file holds."""

    def __init__(self, img_id: int) -> None:
        self.img_id = img_id

    def transform(self, results):
        if results["img_id"] == self.img_id:
            results["img"] = results["img"].astype(np.float32)
            results["img"][0, 0] = np.inf
        return results


def test_a_detector_with_a_poisoned_pixel(tmp_path):
    generate(tmp_path / "shapes", "few", num_images=12, seed=0)
    files = {"train_ann_file": "few/annotations.json", "train_images": "few/images/"}
    cfg = load(
        REPOSITORY / "configs/retinanet/retinanet_r18_fpn_shapes.py",
        {"data_root": f"{tmp_path}/shapes/", "image_scale": (64, 64), "batch_size": 4, "max_epochs": 1, **files},
    )
    cfg.train_dataloader.dataset.pipeline.insert(-1, {"type": "PoisonPixel", "img_id": 7})
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = {"type": "CheckpointHook"}
    cfg.work_dir = str(tmp_path / "run")
    cfg.device = "cpu"
    runner = Runner.from_cfg(cfg)
    with pytest.raises(FloatingPointError, match="the loss is not finite") as caught:
        runner.train()
    assert all(bool(torch.isfinite(value).all()) for value in runner.model.state_dict().values())
    (path,) = Path(runner.work_dir).glob("invalid_loss_iter_*/bundle.pth")
    result = replay(path, "cpu")
    assert result.identical
    assert result.module == "data_preprocessor"
    (name,) = result.bad_images
    assert name in str(caught.value)
    assert [len(result.images), Path(name).name] == [4, "00006.jpg"]  # files count from 0, ids from 1
