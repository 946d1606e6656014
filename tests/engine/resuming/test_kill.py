"""Runs killed without warning, again and again: what they leave can be resumed, and ends with the same weights.

The processes are forked, so that a run costs no import; SIGKILL cannot be caught.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.engine_toys import toy_config
from mmengine.config import Config

from detkit.checkpoints import resume_candidates
from detkit.engine import Hook, Runner, load_checkpoint_file

ITERATIONS = 16
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"custom_hooks": [{"type": "EMAHook", "momentum": 0.1, "update_buffers": True}]},
    "accumulation": {"accumulative_counts": 2},
    "bf16": {"type": "AmpOptimWrapper", "dtype": "bfloat16"},
}
# Between these calls of the operating system lies everything that a checkpoint write does.
WRITES = ("fsync", "replace", "unlink", "remove")


def config(folder: Path, loop: str, workers: int, kind: str) -> dict[str, Any]:
    loader = toy_config("")["train_dataloader"] | {"num_workers": workers, "persistent_workers": loop == "iteration"}
    by_epoch = loop == "epoch"
    train_cfg = {"by_epoch": True, "max_epochs": 4, "val_interval": 2} if by_epoch else {"by_epoch": False}
    checkpoint = {"type": "CheckpointHook", "interval": 3, "by_epoch": False, "max_keep_ckpts": 2}
    logger = {"type": "LoggerHook", "interval": 2, "tensorboard": False}
    options = dict(KINDS[kind])
    hooks = options.pop("custom_hooks", [])
    return toy_config(
        folder,
        train_dataloader=loader | {"dataset": {"type": "ToyDataset", "size": 16}},
        train_cfg=train_cfg if by_epoch else train_cfg | {"max_iters": ITERATIONS, "val_interval": 5},
        param_scheduler=[{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 12}],
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}, **options},
        default_hooks={"logger": logger, "checkpoint": checkpoint | {"save_best": "toy/mAP"}},
        custom_hooks=hooks,
    )


class Trace(Hook):
    """Appends the samples of each iteration to a file, and kills the process where it is told to."""

    def __init__(self, path: Path, stage: str | None, iteration: int) -> None:
        self.path = path
        self.stage = stage
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        line = json.dumps([runner.iter, [sample.img_path for sample in data_batch["data_samples"]]]) + "\n"
        with open(self.path, "a") as file:
            file.write(line)
        self._kill(runner, "before_train_iter")

    def after_backward(self, runner):
        self._kill(runner, "after_backward")

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._kill(runner, "after_train_iter")

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._kill(runner, "after_val_iter")

    def _kill(self, runner, stage):
        if stage == self.stage and runner.iter >= self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


STAGES = ("before_train_iter", "after_backward", "after_train_iter", "after_val_iter")


def kill_at_write(number: int) -> None:
    """Let the process kill itself right before its ``number``-th call that changes the work directory."""
    left = [number]

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in WRITES:
        setattr(os, name, dying(getattr(os, name)))


def work(cfg: dict[str, Any], trace: Path, stage: str | None, at: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    runner = Runner.from_cfg(Config(cfg))
    runner.register_hook(Trace(trace, stage, at))
    if stage == "write":
        kill_at_write(at)
    runner.train()


def run(cfg: dict[str, Any], trace: Path, stage: str | None = None, at: int = 0, after: float | None = None) -> int:
    """Train in a process of its own; kill it at a stage, or ``after`` seconds. Returns its exit status."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(cfg, trace, stage, at))
    process.start()
    process.join(after)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def samples(trace: Path) -> list[list[str]]:
    """The samples of each iteration; one that was done twice saw the same ones both times."""
    seen: dict[int, list[str]] = {}
    for line in trace.read_text().splitlines():
        iteration, images = json.loads(line)
        assert seen.setdefault(iteration, images) == images
    assert sorted(seen) == list(range(ITERATIONS))
    return [seen[iteration] for iteration in range(ITERATIONS)]


def readable(folder: Path) -> bool:
    """Whether the first checkpoint that resuming tries can be read; before the first save there is none."""
    candidates = resume_candidates(folder)
    return not candidates or bool(load_checkpoint_file(candidates[0])["position"])


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def assert_same_end(whole: Path, cut: Path) -> None:
    one, two = (load_checkpoint_file(folder / f"iter_{ITERATIONS}.pth") for folder in (whole, cut))
    parts = {"state_dict", "optimizer", "param_schedulers", "ema_state_dict"} & one.keys()
    if one["position"] == two["position"]:  # a run killed in its last validation saves once more behind it
        parts.add("rng")
    for part in parts:
        assert equal(one[part], two[part]), part
    best = [sorted(folder.glob("best_*")) for folder in (whole, cut)]
    assert len(best[0]) == 1
    assert [path.name for path in best[0]] == [path.name for path in best[1]]
    files = [load_checkpoint_file(paths[0]) for paths in best]
    assert files[0]["meta"]["metric"] == files[1]["meta"]["metric"]
    assert equal(files[0]["state_dict"], files[1]["state_dict"])


def kill_and_resume(tmp_path: Path, loop: str, workers: int, kind: str, seed: int, kills: int) -> int:
    """Train once in one go and once with ``kills``; returns how many of them hit."""
    draw = random.Random(f"{loop} {workers} {kind} {seed}")
    whole, cut = tmp_path / "whole", tmp_path / f"cut_{seed}"
    if not whole.exists():
        assert run(config(whole, loop, workers, kind), tmp_path / "whole.txt") == 0
    hit = 0
    trace = tmp_path / f"cut_{seed}.txt"
    cfg = config(cut, loop, workers, kind) | {"resume": "auto"}
    for _ in range(kills):
        stage = draw.choice((*STAGES, "write", "write"))
        at = draw.randrange(1, 30) if stage == "write" else draw.randrange(ITERATIONS)
        status = run(cfg, trace, stage, at)
        assert status in (0, -signal.SIGKILL)
        hit += status != 0
        assert readable(cut)
    assert run(cfg, trace) == 0
    assert samples(trace) == samples(tmp_path / "whole.txt")
    assert_same_end(whole, cut)
    return hit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", ["epoch", "iteration"])
def test_killed_runs_end_with_the_same_weights(tmp_path, loop, kind):
    assert kill_and_resume(tmp_path, loop, 0, kind, seed=0, kills=2) > 0


@pytest.mark.parametrize(("loop", "kind"), [("epoch", "accumulation"), ("iteration", "ema")])
def test_killed_runs_with_workers_end_with_the_same_weights(tmp_path, loop, kind):
    assert kill_and_resume(tmp_path, loop, 2, kind, seed=0, kills=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loop", ["epoch", "iteration"])
def test_many_kills(tmp_path, loop, workers, kind):
    """With the other combinations some 110 kills at stages and writes, and 48 at a random moment."""
    hits = sum(kill_and_resume(tmp_path, loop, workers, kind, seed, kills=3) for seed in range(1, 4))
    print(f"{loop}, {workers} workers, {kind}: {hits} kills at stages and writes")
    draw = random.Random(f"{loop} {workers} {kind}")
    cut, trace = tmp_path / "cut", tmp_path / "cut.txt"
    cfg = config(cut, loop, workers, kind) | {"resume": "auto"}
    start = time.perf_counter()
    assert run(config(tmp_path / "timed", loop, workers, kind), tmp_path / "timed.txt") == 0
    duration = time.perf_counter() - start
    for _ in range(3):
        run(cfg, trace, after=draw.uniform(0.1, 0.9) * duration)
        assert readable(cut)
    assert run(cfg, trace) == 0
    assert_same_end(tmp_path / "whole", cut)
