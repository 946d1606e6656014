"""Which checkpoint of a work directory a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from detkit.checkpoints import load_checkpoint_file, newest_intact, resume_candidates, save_checkpoint_file
from detkit.checkpoints.work_dir import publish


def save(folder, name, iteration=None, **more):
    meta = {} if iteration is None else {"meta": {"iter": iteration}}
    save_checkpoint_file({**meta, "optimizer": {}, "state_dict": {"w": torch.ones(3)}, **more}, folder / name)


def names(folder):
    return [path.name for path in resume_candidates(folder)]


def test_candidates_follow_last_checkpoint(tmp_path):
    for name in ("epoch_9.pth", "epoch_10.pth", "epoch_11.pth", "best_mAP_epoch_12.pth", ".epoch_13.pth.1.tmp"):
        (tmp_path / name).touch()  # names that count the same thing are not looked into
    assert names(tmp_path) == ["epoch_11.pth", "epoch_10.pth", "epoch_9.pth"]
    # an absolute path, as mmengine writes it, counts by its name: the folder may have moved
    (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_10.pth\n")
    assert names(tmp_path) == ["epoch_10.pth", "epoch_9.pth"]
    for stale in ("", "epoch_12.pth", "best_mAP_epoch_12.pth"):
        (tmp_path / "last_checkpoint").write_text(stale)
        assert names(tmp_path) == ["epoch_11.pth", "epoch_10.pth", "epoch_9.pth"]


@pytest.mark.parametrize("damaged", [b"\xff\xfe", b"\0\0\0\0\0"])
def test_a_damaged_last_checkpoint_names_nothing(tmp_path, damaged):
    save(tmp_path, "epoch_1.pth", 50)
    (tmp_path / "last_checkpoint").write_bytes(damaged)
    warnings: list[str] = []
    found = newest_intact(tmp_path, lambda content, path: None, warnings.append)
    assert found is not None
    assert Path(found[1]).name == "epoch_1.pth"
    assert len(warnings) == 1
    assert "which is not there; taking the newest that is" in warnings[0]


def test_files_of_two_kinds_are_ordered_by_the_iterations_in_them(tmp_path):
    """Epochs of 50 iterations, and one checkpoint in the middle, written when the run was asked to end."""
    save(tmp_path, "epoch_1.pth", 50)
    save(tmp_path, "iter_70.pth", 70)
    save(tmp_path, "epoch_2.pth", 100)
    save(tmp_path, "model_final.pth", 120)
    save_checkpoint_file({"state_dict": {"w": torch.ones(1)}}, tmp_path / "weights.pth")  # no run
    publish(tmp_path / "epoch_2.pth", ["state_dict"])
    assert names(tmp_path) == ["model_final.pth", "epoch_2.pth", "iter_70.pth", "epoch_1.pth"]
    for last, expected in {
        "iter_70.pth": ["iter_70.pth", "epoch_1.pth"],
        "epoch_2.pth": ["epoch_2.pth", "iter_70.pth", "epoch_1.pth"],
        "model_final.pth": ["model_final.pth", "epoch_2.pth", "iter_70.pth", "epoch_1.pth"],
    }.items():
        (tmp_path / "last_checkpoint").write_text(last)
        assert names(tmp_path) == expected


def test_a_published_name_that_ends_in_digits_is_no_candidate(tmp_path):
    for name in ("epoch_1.pth", "epoch_1-01234567.pth"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["epoch_1.pth"]


def newest(folder):
    def check(content, path):
        if "optimizer" not in content:
            raise ValueError(f"{path}: weights only")

    warnings = []
    found = newest_intact(folder, check, warnings.append)
    return found and os.path.basename(found[1]), warnings


@pytest.mark.parametrize("mixed", [False, True])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, mixed):
    save(tmp_path, "iter_1.pth", 1)
    save(tmp_path, "iter_2.pth", 2)
    save(tmp_path, "epoch_1.pth" if mixed else "iter_3.pth", 3)
    last = "epoch_1.pth" if mixed else "iter_3.pth"
    (tmp_path / "last_checkpoint").write_text(last)
    assert newest(tmp_path) == (last, [])
    data = (tmp_path / last).read_bytes()
    for broken in (data[: len(data) // 2], b"", data.replace(torch.ones(3).numpy().tobytes(), bytes(12))):
        (tmp_path / last).write_bytes(broken)
        found, warnings = newest(tmp_path)
        assert found == "iter_2.pth"
        assert len(warnings) == 1
        assert warnings[0].startswith(f"{tmp_path / last} ({len(broken)} bytes): the checkpoint is")
        assert warnings[0].endswith("trying the one before it")
    (tmp_path / last).unlink()
    found, warnings = newest(tmp_path)
    assert found == "iter_2.pth"
    assert warnings == [f"{tmp_path / 'last_checkpoint'} names '{last}', which is not there; taking the newest that is"]


def test_nothing_to_go_on_from(tmp_path):
    """fvcore's case of another folder: there is no checkpoint."""
    assert newest(tmp_path) == (None, [])
    save_checkpoint_file({"meta": {"iter": 1}, "state_dict": {}}, tmp_path / "epoch_1.pth")
    assert newest(tmp_path) == (None, [f"{tmp_path / 'epoch_1.pth'}: weights only; trying the one before it"])


def test_a_published_file_is_named_by_its_content(tmp_path):
    save(tmp_path, "epoch_1.pth", 1)
    path = publish(tmp_path / "epoch_1.pth", ["state_dict"])
    assert publish(tmp_path / "epoch_1.pth", ["state_dict"]) == path
    assert load_checkpoint_file(path).keys() == {"state_dict"}
    with pytest.raises(KeyError, match=r"published_keys names ema; it has meta, optimizer, state_dict"):
        publish(tmp_path / "epoch_1.pth", ["state_dict", "ema"])
    assert len(list(tmp_path.iterdir())) == 2
