"""The checkpoint hook killed at each of its writes, renames, links and deletions, in a run that does nothing else."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop

from detkit.checkpoints import load_checkpoint_file, newest_intact, save_checkpoint_file
from detkit.engine.hooks import CheckpointHook


class Killed(BaseException):
    """Not caught by what cleans up after an exception; the file system is frozen as it is."""


class Disk:
    """Ends the run at one of its writes, renames, links, deletions and synchronisations, before or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self.killed = ""
        for place, name in ((os, "replace"), (os, "link"), (os, "fsync"), (Path, "unlink")):
            monkeypatch.setattr(place, name, self.watched(name, getattr(place, name)))
        monkeypatch.setattr(torch, "save", self.in_two_halves)

    def tick(self, what: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.killed = what
        if self.left <= 0:  # also for what would clean up: nothing does after a kill
            raise Killed

    def watched(self, name, function):
        def call(*args, **kwargs):
            self.tick(f"before {name}")
            result = function(*args, **kwargs)
            self.tick(f"after {name}")
            return result

        return call

    def in_two_halves(self, content, file):
        buffer = io.BytesIO()
        save(content, buffer)
        self.tick("before save")
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        self.tick("in save")
        file.write(buffer.getvalue()[buffer.tell() // 2 :])


save = torch.save


class SmallRunner:
    """What the hook knows of a runner; a run of three epochs with validation takes milliseconds."""

    rank, max_epochs, max_iters, val_loop = 0, 3, 9, None
    scores = (0.1, 0.3, 0.4)
    losses = (0.4, 0.5, 0.3)

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.work_dir, self.epoch, self.weight = str(folder), 0, torch.zeros(50)
        self.logger = logging.getLogger("small")
        self.train_loop = self._train_loop = object.__new__(EpochBasedTrainLoop)
        self.hook = CheckpointHook(
            1, max_keep_ckpts=1, save_best=["mAP", "loss"], final_name="final.pth", published_keys="state_dict"
        )
        self.hooks = [self.hook]
        self.train_completed = False

    @property
    def iter(self) -> int:
        return 3 * self.epoch

    def save_checkpoint(self, folder, name, save_optimizer=True, save_param_scheduler=True, meta=None):
        optimizer = {"optimizer": {}} if save_optimizer else {}
        content = {"meta": meta, "state_dict": {"w": self.weight}, "hook": self.hook.state_dict(), **optimizer}
        save_checkpoint_file(content, Path(folder, name))

    def train(self) -> None:
        found = newest_intact(self.work_dir, lambda content, path: content["optimizer"], pytest.fail)
        if found:
            content = found[0]
            self.epoch, self.weight = content["meta"]["epoch"], content["state_dict"]["w"]
            self.hook.load_state_dict(content["hook"])
        self.hook.before_train(self)
        if found:  # the engine's loops repeat the validation that belongs to the checkpoint
            self.validate()
        while self.epoch < self.max_epochs:
            self.weight = self.weight + 1
            self.hook.after_train_epoch(self)
            self.epoch += 1
            self.validate()
        self.train_completed = True
        self.hook.after_train(self)

    def validate(self) -> None:
        self.hook.after_val_epoch(self, {"mAP": self.scores[self.epoch - 1], "loss": self.losses[self.epoch - 1]})


def content_of(folder: Path) -> dict[str, float]:
    files = {path.name: load_checkpoint_file(path)["state_dict"]["w"][0].item() for path in folder.glob("*.pth")}
    assert not list(folder.glob(".*"))
    return files | {"last_checkpoint": (folder / "last_checkpoint").read_text()}


def test_killed_at_any_point_of_a_write_the_run_can_go_on(tmp_path, monkeypatch):
    """Keeping one checkpoint and the best is the case in which mmengine loses everything."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a point to be killed at, but slow on a busy disk
    SmallRunner(tmp_path / "whole").train()
    expected = content_of(tmp_path / "whole")
    assert {name for name in expected if "-" not in name} == {
        "epoch_3.pth",
        "final.pth",
        "best_mAP_epoch_3.pth",
        "best_loss_epoch_3.pth",
        "last_checkpoint",
    }
    points = set()
    for step in range(1, 1000):
        folder = tmp_path / str(step)
        runner = SmallRunner(folder)
        with monkeypatch.context() as patch:
            disk = Disk(patch, step)
            try:
                runner.train()
            except Killed:
                points.add(disk.killed)
            else:
                break
        # Whatever has its name is whole.
        assert all(load_checkpoint_file(path) for path in folder.glob("*.pth"))
        resumed = SmallRunner(folder)
        resumed.train()
        assert content_of(folder) == expected, step
        assert resumed.hook.state_dict() == {
            "best": {
                "mAP": {"score": 0.4, "file": "best_mAP_epoch_3.pth", "epoch": 3, "iter": 9},
                "loss": {"score": 0.3, "file": "best_loss_epoch_3.pth", "epoch": 3, "iter": 9},
            },
            "kept": ["epoch_3.pth"],
        }
    assert step > 60
    assert points >= {
        f"{when} {what}" for when in ("before", "after") for what in ("replace", "link", "fsync", "unlink")
    }
    assert points >= {"before save", "in save"}


@pytest.mark.slow
def test_really_killed_the_run_can_go_on(tmp_path):
    """SIGKILL at a random moment of a run that does nothing but write."""
    rng = random.Random(0)
    SmallRunner.max_epochs, before = 400, SmallRunner.max_epochs
    SmallRunner.scores, scores = tuple(i / 400 for i in range(400)), SmallRunner.scores
    SmallRunner.losses, losses = tuple(rng.random() for _ in range(400)), SmallRunner.losses
    try:
        reached = 0
        for _ in range(100):
            child = os.fork()
            if child == 0:
                try:
                    SmallRunner(tmp_path / "run").train()
                finally:
                    os._exit(0)
            time.sleep(rng.uniform(0.005, 0.08))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert all(load_checkpoint_file(path) for path in (tmp_path / "run").glob("*.pth"))
            found = newest_intact(tmp_path / "run", lambda content, path: content["optimizer"], pytest.fail)
            epoch = found[0]["meta"]["epoch"] if found else 0
            assert epoch >= reached
            reached = epoch
        assert reached > 5
    finally:
        SmallRunner.max_epochs, SmallRunner.scores, SmallRunner.losses = before, scores, losses
