"""Which images are drawn, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.structures import InstanceData

from detkit.engine.hooks import DetVisualizationHook
from detkit.structures.sample import DetDataSample


class Drawer:
    def __init__(self) -> None:
        self.calls: list[tuple[str, np.ndarray, dict]] = []

    def add_datasample(self, name, image, data_sample, **options):
        self.calls.append((name, image, options))
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
    return SimpleNamespace(work_dir=str(folder), visualizer=Drawer(), _train_loop=loop, iter=0)


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
    assert validate(DetVisualizationHook(interval=2), fake, samples, 5) == 8
    loop._iter = loop.max_iters
    fake.iter = loop.max_iters
    assert validate(DetVisualizationHook(), fake, samples) == 4
    assert validate(DetVisualizationHook(draw=False), fake, samples) == 0


def test_a_test_is_drawn_into_its_own_folder(tmp_path, samples):
    runner = fake_runner(tmp_path / "run")
    hook = DetVisualizationHook(num_images=1, test_out_dir="test_pictures")
    hook.before_test_epoch(runner)
    hook.after_test_iter(runner, 0, None, samples)
    assert [path.name for path in (tmp_path / "run" / "test_pictures").iterdir()] == ["001_0.png"]


def test_images_that_are_no_files_are_left_out(tmp_path):
    runner = fake_runner(tmp_path)
    assert validate(DetVisualizationHook(), runner, [DetDataSample()] * 4) == 0
