"""``metrics.jsonl`` and TensorBoard's events: what is in them, and what a run that goes on makes of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detkit.engine.reporting.metric_files import MetricFiles, scalars
from detkit.events import EventStorage
from detkit.visualization.curves import read_metrics


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    files = MetricFiles(tmp_path, tensorboard=False)
    files.write(3, 1, {"a": float("nan"), "b": float("inf"), "c": 1.5}, "val")
    files.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        **{"step": 3, "epoch": 1, "a": None, "b": None, "c": 1.5},
    }


def test_a_new_run_puts_the_old_numbers_aside_and_a_resumed_one_goes_on(tmp_path):
    for step in (0, 0, 2):
        files = MetricFiles(tmp_path, step, tensorboard=False)
        files.write(step + 1, 1, {"a": 1.0}, "train")
        files.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    (old,) = tmp_path.glob("metrics_*.jsonl")
    assert json.loads(old.read_text())["step"] == 1


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2}'])
def test_a_line_that_was_cut_off_does_not_spoil_the_resumed_runs_first(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + torn)
    files = MetricFiles(tmp_path, 1, tensorboard=False)
    files.write(2, 1, {"loss": 0.5}, "train")
    files.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "epoch": 1, "loss": 0.5}]


def test_scalars_takes_single_numbers_only():
    values = {"a": torch.tensor([2.0]), "b": 1, "c": [1, 2], "d": "x", "e": torch.ones(2)}
    assert scalars(values) == {"a": 2.0, "b": 1.0}


def test_lines_of_steps_that_are_made_again_are_discarded(tmp_path):
    first = MetricFiles(tmp_path, tensorboard=False)
    for step in (2, 4, 4, 6, 8):
        first.write(step, 1, {"a": float(step)}, "train")
    first.close()
    assert first.lines == 5
    (tmp_path / "metrics.jsonl").open("a").write("a note of somebody\n")
    by_step = MetricFiles(tmp_path, 4, tensorboard=False)
    by_step.write(5, 1, {"a": 5.0}, "train")
    by_step.close()
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert text.pop(3) == "a note of somebody"
    assert [json.loads(line)["step"] for line in text] == [2, 4, 4, 5]


def test_the_length_at_the_checkpoint_decides_where_steps_do_not(tmp_path):
    first = MetricFiles(tmp_path, tensorboard=False)
    for step in (2, 4, 4):  # the third came after the checkpoint of step 4
        first.write(step, 1, {"a": float(step)}, "train")
    first.close()
    resumed = MetricFiles(tmp_path, 4, tensorboard=False, lines=2)
    assert resumed.lines == 2
    resumed.write(4, 1, {"a": 40.0}, "val")
    resumed.close()
    assert [line["a"] for line in lines(tmp_path)] == [2.0, 4.0, 40.0]


def test_what_is_synchronised_is_on_disk(tmp_path, monkeypatch):
    synchronised = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synchronised.append(descriptor) or fsync(descriptor))
    files = MetricFiles(tmp_path)
    files.sync()
    assert synchronised == []
    files.write(1, 1, {"a": 1.0}, "train")
    assert synchronised == []  # not at each line: a slow disk would hold up the run
    files.sync()
    assert len(synchronised) == 2  # both files
    files.close()
    assert len(synchronised) == 4


def test_a_folder_without_numbers_stays_empty(tmp_path):
    """Detectron2's check of its TensorBoard writer: no files without data, files with one scalar."""
    files = MetricFiles(tmp_path)
    files.close()
    assert list(tmp_path.iterdir()) == []
    files.write(1, 1, {"a": 1.0}, "train")
    files.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_has_numbers_images_and_histograms(tmp_path):
    storage = EventStorage(7)
    storage.put_image("sample", torch.full((3, 4, 5), 0.5))
    storage.put_histogram("scores", torch.tensor([0.0, 0.1, 1.0, float("nan")]), bins=2)
    storage.put_histogram("nothing", torch.tensor([float("nan")]), bins=2)
    files = MetricFiles(tmp_path)
    files.write(5, 1, {"loss": 0.5, "coco/AP": 0.25, "bad": float("nan")}, "train")
    files.write_picture(storage.take_images()[0])
    for histogram in storage.take_histograms():
        files.write_histogram(histogram)
    files.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert sorted(tags["scalars"]) == ["coco/AP", "train/bad", "train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(5, 0.5)]
    assert np.isnan(events.Scalars("train/bad")[0].value)
    (image,) = events.Images("sample")
    assert (image.step, image.height, image.width) == (7, 4, 5)
    (histogram,) = events.Histograms("scores")
    value = histogram.histogram_value
    assert (histogram.step, value.min, value.max, value.num) == (7, 0.0, 1.0, 3)
    assert (value.sum, value.sum_squares) == pytest.approx((1.1, 1.01))
    assert list(value.bucket)[-2:] == [2, 1]
    assert tags["histograms"] == ["scores"]
    assert "tensorflow" not in sys.modules


def test_tensorboard_forgets_the_steps_that_a_resumed_run_makes_again(tmp_path):
    for step, last in ((0, 6), (4, 5)):
        files = MetricFiles(tmp_path, step)
        for one in range(step + 1, last + 1):
            files.write(one, 1, {"loss": step * 10.0 + one}, "train")
        files.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        *((1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 45.0)),
    ]
