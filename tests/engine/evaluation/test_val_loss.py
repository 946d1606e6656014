"""Losses on the validation set: their values, and that nothing else notices them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from engine.engine_toys import ToyModel
from engine.evaluation import evaluation_ranks as ranks
from mmengine.structures import InstanceData, PixelData

from detkit.config import load
from detkit.datasets.shapes import generate
from detkit.engine import CheckpointHook, EarlyStoppingHook, Runner, launch
from detkit.engine.evaluation.annotation_frame import loads_in_original_frame, to_network_frame
from detkit.engine.evaluation.val_loss import ValidationLoss
from detkit.registry import MODELS
from detkit.structures import BitmapMasks, DetDataSample

CONFIG = "configs/retinanet/retinanet_r18_fpn_shapes.py"
SMALL = [
    "model.backbone.base_channels=8",
    "model.neck.in_channels=[8,16,32]",
    "model.neck.out_channels=16",
    "model.bbox_head.in_channels=16",
    "model.bbox_head.feat_channels=16",
    "model.test_cfg.score_thr=0.0",
    "batch_size=3",
    "max_epochs=1",
    # Twice the images' size: boxes in the frame of the original image would be far from their objects.
    "image_scale=(256,256)",
]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A config whose training set is its validation set: 8 images, without augmentation."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, "one", num_images=8, seed=3)
    paths = [f"data_root={root}/", "train_images=one/images/", "val_images=one/images/"]
    files = [f"{kind}_ann_file=one/annotations.json" for kind in ("train", "val")]
    cfg = load(CONFIG, [*SMALL, *paths, *files])
    pipeline = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [step for step in pipeline if step["type"] != "RandomFlip"]
    cfg.device, cfg.default_hooks.visualization, cfg.work_dir = "cpu", None, str(root / "run")
    return cfg


def runner_of(cfg, **val_cfg):
    torch.set_num_threads(1)
    cfg = deepcopy(cfg)
    cfg.val_cfg = {"type": "ValLoop", **val_cfg}
    return Runner.from_cfg(cfg)


def test_the_loss_on_the_training_images_is_the_training_loss(detector):
    """To 1e-4, by images loaded and resized in the other order; predictions and AP do not notice."""
    runner = runner_of(detector, loss=True)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.model.init_weights()
    metrics = runner.val()
    runner.model.eval()
    sums: dict[str, float] = {}
    dataset = runner.train_dataloader.dataset
    for batch in ([0, 1, 2], [3, 4, 5], [6, 7]):
        samples = [dataset[index] for index in batch]
        data = {key: [sample[key] for sample in samples] for key in samples[0]}
        data = runner.model.data_preprocessor(data, True)
        with torch.no_grad():
            _, losses = runner.model.parse_losses(runner.model(**data, mode="loss"))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.item() * len(batch)
    assert set(sums) == {"loss", "loss_cls", "loss_bbox"}
    for name, value in sums.items():
        assert metrics[f"val/{name}"] == pytest.approx(value / 8, rel=1e-4), name

    plain = runner_of(detector)
    plain._val_loop = plain.build_val_loop(plain._val_loop)
    plain.model.load_state_dict(runner.model.state_dict())
    without = plain.val_loop.run()
    assert without == {name: value for name, value in metrics.items() if not name.startswith("val/")}
    assert len(without) > 5
    # Metrics by the dozen do not push it out of the line.
    logs = [path.read_text() for path in Path(detector.work_dir).rglob("*.log")]
    assert any(f"val/loss {metrics['val/loss']:.4f}" in log for log in logs)


def test_training_does_not_notice_the_loss(make_runner):
    plain, both = make_runner("plain", epochs=2), make_runner("loss", epochs=2, val_cfg={"loss": True})
    plain.train()
    both.train()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(both.model.state_dict()[name], value, rtol=0, atol=0)
    assert all(parameter.grad is None or parameter.grad.grad_fn is None for parameter in both.model.parameters())


def test_save_best_and_early_stopping_go_by_the_loss_of_the_validation(make_runner, tmp_path):
    hooks = {"checkpoint": {"type": "CheckpointHook", "save_best": "val/loss", "strict": True}}
    stop = {"type": "EarlyStoppingHook", "monitor": "val/loss"}
    runner = make_runner(epochs=3, val_cfg={"loss": True}, default_hooks=hooks, custom_hooks=[stop])
    seen = []
    run = runner.build_val_loop(runner._val_loop)
    runner._val_loop = run
    original = run.run
    run.run = lambda: seen.append(original()["val/loss"])
    runner.train()
    assert len(seen) == 3
    best = next(hook for hook in runner.hooks if isinstance(hook, CheckpointHook)).best
    assert best["val/loss"]["score"] == min(seen)
    stopping = next(hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook))
    assert stopping.best_score == pytest.approx(min(seen), abs=stopping.min_delta)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["val/loss"] for line in lines if "val/loss" in line] == pytest.approx(seen)


@MODELS.register_module()
class CountingModel(ToyModel):
    """Keeps count of what its loss has seen, as running normalisers and class counts do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        if mode == "loss":
            self.seen = self.seen + len(data_samples)
        return super().forward(inputs, data_samples, mode)


def test_buffers_that_a_loss_keeps_are_put_back(make_runner):
    runner = make_runner(model={"type": "CountingModel", "bbox_head": {"type": "ToyHead"}}, val_cfg={"loss": True})
    assert "val/loss" in runner.val()
    assert runner.model.seen == 0


def test_a_pipeline_without_annotations_is_refused(detector):
    cfg = deepcopy(detector)
    pipeline = cfg.val_dataloader.dataset.pipeline
    cfg.val_dataloader.dataset.pipeline = [step for step in pipeline if step["type"] != "LoadAnnotations"]
    with pytest.raises(ValueError, match=r"val_dataloader\.dataset\.pipeline: a loss needs annotations, .*loads none"):
        runner_of(cfg, loss=True).val()


def test_samples_without_annotations_are_refused(make_runner):
    runner = make_runner(val_cfg={"loss": True})
    loop = runner.build_val_loop(runner._val_loop)
    loss = ValidationLoss(runner.model, loop.dataloader, "val_dataloader")
    sample = DetDataSample(metainfo={"img_path": "a.jpg"})
    sample.gt_instances = InstanceData()
    with pytest.raises(ValueError, match=r"a loss needs annotations, but a\.jpg has none"):
        loss.add({"inputs": [torch.zeros(4)], "data_samples": [sample]})


def fake_dataset(*names):
    transforms = [type(name, (), {})() for name in names]
    return SimpleNamespace(pipeline=SimpleNamespace(transforms=transforms))


def test_the_frame_of_annotations_is_read_off_the_pipeline():
    first = fake_dataset("LoadImageFromFile", "LoadAnnotations", "Resize", "RandomFlip", "PackDetInputs")
    after = fake_dataset("LoadImageFromFile", "FixScaleResize", "Pad", "LoadAnnotations", "PackDetInputs")
    assert not loads_in_original_frame(first, "p")
    assert loads_in_original_frame(after, "p")
    assert loads_in_original_frame(SimpleNamespace(datasets=[after, after]), "p")
    assert not loads_in_original_frame(SimpleNamespace(), "p")
    with pytest.raises(ValueError, match="p: some of the joined datasets load annotations before Resize"):
        loads_in_original_frame(SimpleNamespace(datasets=[after, first]), "p")
    with pytest.raises(ValueError, match="LoadAnnotations comes after RandomCrop, so"):
        loads_in_original_frame(fake_dataset("LoadImageFromFile", "RandomCrop", "LoadAnnotations"), "p")


def test_ground_truth_moves_into_the_frame_of_the_network():
    """An image of 4 x 6 that is resized to 8 x 18: widths times 3, heights times 2."""
    sample = DetDataSample(metainfo={"scale_factor": (3.0, 2.0), "img_path": "a.jpg"})
    masks = BitmapMasks([torch.tensor([[1, 0, 0, 0, 0, 0]] + [[0] * 6] * 3).numpy()], 4, 6)
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[1.0, 1, 2, 3]]), labels=torch.tensor([2]), masks=masks)
    sample.ignored_instances = InstanceData(bboxes=torch.tensor([[0.0, 0, 1, 1]]), labels=torch.tensor([0]))
    sample.gt_sem_seg = PixelData(sem_seg=torch.arange(24).view(1, 4, 6))
    moved = to_network_frame(sample)
    assert moved.gt_instances.bboxes.tolist() == [[3, 2, 6, 6]]
    assert moved.ignored_instances.bboxes.tolist() == [[0, 0, 3, 2]]
    assert moved.gt_instances.masks.masks[0, :2, :3].min() == 1
    assert moved.gt_instances.masks.masks.sum() == 6
    assert moved.gt_sem_seg.sem_seg.shape == (1, 8, 18)
    assert moved.gt_sem_seg.sem_seg[0, 7, 17] == 23
    # The metric and the pictures go on with the original.
    assert sample.gt_instances.bboxes.tolist() == [[1, 1, 2, 3]]
    assert sample.gt_instances.masks.masks.shape == (1, 4, 6)
    sample.set_metainfo({"flip": True})
    with pytest.raises(ValueError, match=r"a\.jpg: a loss on annotations loaded after Resize"):
        to_network_frame(sample)


@pytest.fixture(scope="module")
def of_two():
    return launch(ranks.two, 2, device_type="cpu", start_method="forkserver")


def test_processes_with_unequal_shares_give_the_mean_over_all_images(of_two):
    """Batches of 4 and 4 images in one, of 2 in the other: as in one process."""
    model = ranks.toy_model(ToyModel)
    alone = ranks.mean_losses(model, ranks.batches([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]))
    assert of_two["uneven"] == [pytest.approx(alone, rel=1e-6)] * 2
    # Losses that a model hands over with its predictions: (1 + 2 + 6) / 3, the same number everywhere.
    assert of_two["handed over"] == [{"loss": 3.0}] * 2
    assert of_two["one empty"] == ["val_dataloader: a loss needs a batch in each of 2 processes, they have [2, 0]"] * 2
    # By hand: the mean over images of what each batch reports.
    total = 0.0
    for batch in ranks.batches([0, 1, 2, 3], [4, 5, 6, 7], [8, 9]):
        with torch.no_grad():
            total += float(model(batch["inputs"], batch["data_samples"], mode="loss")["loss_cls"]) * len(
                batch["inputs"]
            )
    assert alone["loss_cls"] == pytest.approx(total / 10, rel=1e-6)


def test_processes_wait_for_a_function_that_evaluates(of_two):
    assert of_two["metrics"] == [{"AP": 0.5}, {"AP": 0.5}]
    slow, fast = of_two["times"]
    assert fast["left"] >= slow["done"] > fast["done"]
