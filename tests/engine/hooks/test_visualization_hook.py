"""Which images are drawn, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from detkit.engine.hooks import DetVisualizationHook
from detkit.structures.sample import DetDataSample
from detkit.visualization import DetLocalVisualizer


class Drawer:
    def __init__(self) -> None:
        self.calls: list[tuple[str, np.ndarray, dict]] = []
        self._vis_backends: dict[str, object] = {}

    def add_datasample(self, name, image, data_sample, **options):
        self.calls.append((name, image, options))
        self.sample = data_sample
        Path(options["out_file"]).touch()


@pytest.fixture
def samples(tmp_path):
    made = []
    for index in range(4):
        image = np.zeros((6, 8, 3), np.uint8)
        image[..., 0] = 200  # blue in a file's order
        cv2.imwrite(str(tmp_path / f"{index}.png"), image)
        sample = DetDataSample(metainfo={"img_path": str(tmp_path / f"{index}.png")})
        sample.gt_instances = InstanceData()
        sample.pred_instances = InstanceData()
        made.append(sample)
    return made


def validate(hook, runner, samples, times: int = 1) -> int:
    before = len(runner.visualizer.calls)
    for _ in range(times):
        hook.before_val_epoch(runner)
        for start in (0, 2):
            hook.after_val_iter(runner, start // 2, None, samples[start : start + 2])
    return len(runner.visualizer.calls) - before


def fake_runner(folder, loop=None):
    loader = SimpleNamespace(dataset=None)
    runner = SimpleNamespace(work_dir=str(folder), visualizer=Drawer(), _train_loop=loop, iter=0)
    runner.val_dataloader = runner.test_dataloader = loader
    return runner


def test_the_first_images_are_drawn_in_rgb_with_truth(tmp_path, samples):
    runner = fake_runner(tmp_path / "run")
    assert validate(DetVisualizationHook(num_images=3, score_thr=0.4), runner, samples) == 3
    name, image, options = runner.visualizer.calls[2]
    assert name == "2"
    assert image[0, 0].tolist() == [0, 0, 200]
    assert options["draw_gt"]
    assert options["pred_score_thr"] == 0.4
    assert sorted(path.name for path in (tmp_path / "run" / "predictions").iterdir()) == [
        *("001_0.png", "002_1.png", "003_2.png"),
    ]


def test_drawn_at_the_last_validation_or_every_interval(tmp_path, samples, make_runner):
    runner = make_runner(epochs=2)
    loop = runner.train_loop
    fake = fake_runner(tmp_path, loop)
    assert validate(DetVisualizationHook(), fake, samples, 2) == 0
    assert validate(DetVisualizationHook(val_interval=2), fake, samples, 5) == 8
    loop._iter = loop.max_iters
    fake.iter = loop.max_iters
    assert validate(DetVisualizationHook(), fake, samples) == 4
    assert validate(DetVisualizationHook(draw=False), fake, samples) == 0


def test_as_in_mmdetection_an_interval_draws_the_first_image_of_every_so_many_batches(tmp_path, samples, make_runner):
    runner = make_runner(epochs=2)
    fake = fake_runner(tmp_path, runner.train_loop)
    for interval, names in ((1, ["0", "2"]), (2, ["0"])):
        fake.visualizer.calls.clear()
        assert validate(DetVisualizationHook(interval=interval), fake, samples, 2) == 2 * len(names)
        assert [name for name, _, _ in fake.visualizer.calls] == names * 2
    assert validate(DetVisualizationHook(interval=1, num_images=1), fake, samples) == 1
    assert validate(DetVisualizationHook(num_images=None, val_interval=1), fake, samples) == 4


def test_windows_and_file_backends_are_handed_on(tmp_path, samples, monkeypatch):
    read = []
    monkeypatch.setattr("mmcv.imread", lambda path, **options: read.append(options) or np.zeros((6, 8, 3), np.uint8))
    runner = fake_runner(tmp_path)
    hook = DetVisualizationHook(num_images=1, show=True, wait_time=2.0, backend_args={"backend": "local"})
    assert validate(hook, runner, samples) == 1
    assert read == [{"channel_order": "rgb", "backend_args": {"backend": "local"}}]
    options = runner.visualizer.calls[0][2]
    assert options["show"] is True
    assert options["wait_time"] == 2.0


@pytest.mark.parametrize("argument", ["interval", "num_images", "val_interval"])
def test_numbers_that_make_no_sense_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, or None, got 0"):
        DetVisualizationHook(**{argument: 0})


def test_the_picture_shows_truth_beside_predictions_and_reaches_the_backends(tmp_path):
    """Real drawing: a red box of the truth at the left, the prediction above the threshold alone at the right."""
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((60, 80, 3), 90, np.uint8))
    sample = DetDataSample(metainfo={"img_path": str(tmp_path / "grey.png")})
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[10.0, 10, 50, 50]]), labels=torch.tensor([0]))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[12.0, 12, 52, 52], [0.0, 0, 20, 20]]),
        labels=torch.tensor([0, 0]),
        scores=torch.tensor([0.9, 0.2]),
    )
    visualizer = DetLocalVisualizer(vis_backends=[{"type": "LocalVisBackend"}], save_dir=str(tmp_path / "backend"))
    visualizer.dataset_meta = {"classes": ("disc",), "palette": [(255, 0, 0)]}
    runner = fake_runner(tmp_path / "run")
    runner.visualizer = visualizer
    hook = DetVisualizationHook(score_thr=0.5)
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, None, [sample])
    picture = cv2.imread(str(tmp_path / "run" / "predictions" / "001_grey.png"))[..., ::-1].astype(int)
    half = picture.shape[1] // 2
    red = (picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
    assert red[:, :half].any()
    assert red[:, half:].any()
    _, columns = np.nonzero(red[:, half:])
    assert columns.min() > 8  # the box of low score would begin at the left edge
    assert len(list((tmp_path / "backend").rglob("*.png"))) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("LoadImageFromFile", "LoadAnnotations", "Resize", "PackDetInputs"), [1, 2, 3, 4]),
        (("LoadImageFromFile", "Resize", "LoadAnnotations", "PackDetInputs"), [2, 6, 6, 12]),
    ],
)
def test_truth_that_was_resized_with_the_image_is_drawn_in_its_place(tmp_path, samples, names, expected):
    """An image that was resized to twice its width and three times its height; predictions are in its own pixels."""
    transforms = [type(name, (), {})() for name in names]
    runner = fake_runner(tmp_path)
    runner.val_dataloader.dataset = SimpleNamespace(pipeline=SimpleNamespace(transforms=transforms))
    samples[0].set_metainfo({"scale_factor": (2.0, 3.0)})
    samples[0].gt_instances = InstanceData(bboxes=torch.tensor([[2.0, 6, 6, 12]]), labels=torch.tensor([0]))
    validate(DetVisualizationHook(num_images=1), runner, samples)
    assert runner.visualizer.sample.gt_instances.bboxes.tolist() == [pytest.approx(expected)]
    assert samples[0].gt_instances.bboxes.tolist() == [[2, 6, 6, 12]]


def test_a_test_is_drawn_into_its_own_folder(tmp_path, samples):
    runner = fake_runner(tmp_path / "run")
    hook = DetVisualizationHook(num_images=1, test_out_dir="test_pictures")
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, samples)
    assert [path.name for path in (tmp_path / "run" / "test_pictures").iterdir()] == ["001_0.png"]


def test_images_that_are_no_files_are_left_out(tmp_path):
    runner = fake_runner(tmp_path)
    assert validate(DetVisualizationHook(), runner, [DetDataSample()] * 4) == 0
