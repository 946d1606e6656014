"""Checkpoint files: what they hold, what survives a kill, what is refused."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from detkit.checkpoints import (
    load_checkpoint_file,
    load_weights,
    resume_candidates,
    save_checkpoint_file,
    to_plain,
)


class Evil:
    """Unpickled without care, leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_to_plain_converts_numpy_and_containers():
    plain = to_plain(
        {"a": np.float32(1.5), "b": np.array([1, 2]), "c": OrderedDict(x=(np.int64(3),)), "d": np.array(["s"])}
    )
    assert plain["a"] == 1.5
    assert type(plain["a"]) is float
    assert torch.equal(plain["b"], torch.tensor([1, 2]))
    assert plain["c"] == {"x": (3,)}
    assert type(plain["c"]) is dict
    assert type(plain["c"]["x"][0]) is int
    assert plain["d"] == ["s"]


def test_to_plain_names_the_place_of_what_it_refuses():
    with pytest.raises(TypeError, match=r"checkpoint\.meta\.items\.1: .*Path cannot be saved"):
        to_plain({"meta": {"items": [1, Path("x")]}})


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    save_checkpoint_file({"x": torch.zeros(100_000)[:2]}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 10_000


def test_round_trip_opens_with_weights_only(tmp_path):
    saved = {"meta": {"epoch": 3, "names": ["a"]}, "state_dict": {"w": nn.Parameter(torch.arange(3.0))}, "n": None}
    save_checkpoint_file(saved, tmp_path / "x.pth")
    for loaded in (torch.load(tmp_path / "x.pth", weights_only=True), load_checkpoint_file(tmp_path / "x.pth")):
        assert loaded["meta"] == saved["meta"]
        assert loaded["n"] is None
        assert type(loaded["state_dict"]["w"]) is torch.Tensor
        assert torch.equal(loaded["state_dict"]["w"], torch.arange(3.0))


@pytest.mark.parametrize("killed_in", ["save", "fsync", "replace"])
def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch, killed_in):
    path = tmp_path / "x.pth"
    save_checkpoint_file({"n": 1}, path)

    def kill(*_args, **_kwargs):
        if killed_in == "save":
            _args[1].write(b"PK half of a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(*{"save": (torch, "save"), "fsync": (os, "fsync"), "replace": (os, "replace")}[killed_in], kill)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint_file({"n": 2}, path)
    monkeypatch.undo()
    assert load_checkpoint_file(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["x.pth"]


def test_data_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    save_checkpoint_file({"n": 1}, tmp_path / "x.pth")
    assert calls == ["fsync", "replace", "fsync"]  # file, name, folder


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_named_with_its_size(tmp_path, legacy, share):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"x\.pth \({int(len(data) * share)} bytes\)") as caught:
        load_checkpoint_file(path)
    if not legacy:
        assert "truncated" in str(caught.value)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(100), b"not a checkpoint at all"])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth .* not a checkpoint that torch can open"):
        load_checkpoint_file(path)


def test_missing_file_and_wrong_content(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such checkpoint"):
        load_checkpoint_file(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="a dict was expected in the checkpoint, got list"):
        load_checkpoint_file(tmp_path / "list.pth")


@pytest.mark.parametrize("by", ["torch", "pickle"])
@pytest.mark.parametrize("open_", [load_checkpoint_file, lambda path: CheckpointLoader.load_checkpoint(str(path))])
def test_code_in_a_pickle_is_not_run(tmp_path, by, open_):
    path, trace = tmp_path / "x.pth", tmp_path / "was_here"
    if by == "torch":
        torch.save({"x": Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Evil(trace)}, protocol=2))
    with pytest.raises(ValueError, match=r"opening this file would run code \((posix|nt)\.system\)"):
        open_(path)
    assert not trace.exists()


def test_code_behind_a_url_is_not_run(tmp_path, monkeypatch):
    trace = tmp_path / "was_here"
    torch.save({"x": Evil(trace)}, tmp_path / "x.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "urlopen", lambda request: urlopen((tmp_path / "x.pth").as_uri()))
    for name in ("http://host/x.pth", "https://host/x.pth"):
        with pytest.raises(ValueError, match="would run code"):
            CheckpointLoader.load_checkpoint(name)
    assert not trace.exists()


def test_load_weights_reports_what_does_not_fit(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = {"module.0.weight": torch.ones(3, 2), "module.0.bias": torch.ones(4), "module.9.weight": torch.ones(1)}
    save_checkpoint_file({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no tensor of it fits"):  # not all names have the prefix
        load_weights(nn.Sequential(nn.Linear(2, 3)), {"module.0.weight": torch.ones(3, 2), "9.bias": torch.ones(1)})
    report = load_weights(model, tmp_path / "x.pth")
    assert report.loaded == 1
    assert report.missing == ["1.weight", "1.bias"]
    assert report.unexpected == ["9.weight"]
    assert report.mismatched == ["0.bias: file (4,), model (3,)"]
    assert torch.equal(model[0].weight, torch.ones(3, 2))
    assert "2 missing (1.weight, 1.bias)" in str(report)


def test_load_weights_strict_changes_nothing_and_foreign_weights_are_refused():
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"weights and model do not agree: .*missing"):
        load_weights(model, {"weight": torch.ones(1, 2)}, strict=True)
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="no tensor of it fits this model"):
        load_weights(model, {"conv.weight": torch.ones(1)})


def test_resume_candidates_follow_last_checkpoint(tmp_path):
    for name in ("epoch_9.pth", "epoch_10.pth", "epoch_11.pth", "best_mAP_epoch_12.pth"):
        (tmp_path / name).touch()
    names = [path.name for path in resume_candidates(tmp_path)]
    assert names == ["epoch_11.pth", "epoch_10.pth", "epoch_9.pth"]
    # an absolute path, as mmengine writes it, counts by its name: the folder may have moved
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_10.pth\n")
    assert [path.name for path in resume_candidates(tmp_path)] == ["epoch_10.pth", "epoch_9.pth"]
    (tmp_path / "last_checkpoint").write_text("")
    assert [path.name for path in resume_candidates(tmp_path)] == names
