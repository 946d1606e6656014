"""Writing checkpoint files: what they may hold, and that a kill leaves the old one or the whole new one."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detkit.checkpoints import load_checkpoint_file, save_checkpoint_file, to_plain, write_text
from detkit.checkpoints.files import link_file, remove_partial_files


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


def test_saving_makes_no_second_copy_in_memory(tmp_path, monkeypatch):
    """mmengine builds the whole file in memory first."""
    weight = nn.Parameter(torch.randn(1000))
    seen = []
    save = torch.save

    def spy(content, file):
        seen.append((content["w"].data_ptr() == weight.data_ptr(), Path(file.name).parent == tmp_path))
        save(content, file)

    monkeypatch.setattr(torch, "save", spy)
    save_checkpoint_file({"w": weight}, tmp_path / "x.pth")
    assert seen == [(True, True)]


def test_round_trip_opens_with_weights_only(tmp_path):
    """Detectron2's files pass this on torch 2.6 and later, mmengine's raise an UnpicklingError."""
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


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_a_file_of_its_own(tmp_path, monkeypatch, links):
    """Also on a file system without links; the two do not change together."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    save_checkpoint_file({"n": 1}, tmp_path / "a.pth")
    write_text(tmp_path / "b.pth", "an older one")
    link_file(tmp_path / "a.pth", tmp_path / "b.pth")
    assert (tmp_path / "a.pth").samefile(tmp_path / "b.pth") is links
    save_checkpoint_file({"n": 2}, tmp_path / "a.pth")
    assert load_checkpoint_file(tmp_path / "b.pth") == {"n": 1}
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "b.pth"]


def test_only_leftovers_of_writers_are_swept_up(tmp_path):
    for name in (".epoch_1.pth.123.tmp", ".last_checkpoint.7.tmp", ".notes.tmp", "x.123.tmp", ".hidden"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", ".notes.tmp", "x.123.tmp"]
