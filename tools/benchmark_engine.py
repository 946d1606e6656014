"""Time what the runner and its default hooks add to a training step.

python tools/benchmark_engine.py
python tools/benchmark_engine.py --steps 1000000 --runs 1

A small model with five losses is trained by a loop of six lines and by the runner, in turn, on data in memory.
CPU time of this process, one thread. With many steps the table shows whether the cost grows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOSSES = 5


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time what the runner adds to a training step.")
    parser.add_argument("--steps", type=int, default=3000, help="steps per run (default: 3000)")
    parser.add_argument("--runs", type=int, default=7, help="pairs of runs, after one that does not count (default: 7)")
    parser.add_argument("--interval", type=int, default=50, help="steps between two log lines (default: 50)")
    args = parser.parse_args(arguments)
    if min(args.steps, args.runs, args.interval) < 1:
        parser.error("--steps, --runs and --interval must be at least 1")
    return args


def register() -> None:
    """Make the model and the data known to configs."""
    import torch
    from mmengine.model import BaseModel
    from torch import nn
    from torch.utils.data import Dataset

    from detkit.registry import DATASETS, FUNCTIONS, MODELS

    @MODELS.register_module()
    class OverheadModel(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, LOSSES))

        def forward(self, inputs: Any, mode: str = "loss") -> Any:
            values = self.layers(inputs).square().mean(dim=0)
            return {f"loss_{index}": value for index, value in enumerate(values.unbind())}

    @DATASETS.register_module()
    class OverheadData(Dataset):
        metainfo: dict[str, Any] = {}

        def __init__(self) -> None:
            self.data = torch.randn(10_000, 8)

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> Any:
            return self.data[index]

    FUNCTIONS.register_module(module=stacked, name="stacked")


def stacked(batch: list[Any]) -> dict[str, Any]:
    import torch

    return {"inputs": torch.stack(batch)}


def bare(steps: int) -> float:
    """Seconds per step of a loop without anything around it."""
    from itertools import chain, islice, repeat

    import torch
    from torch.utils.data import DataLoader

    from detkit.registry import DATASETS, MODELS

    model = MODELS.build({"type": "OverheadModel"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    loader = DataLoader(DATASETS.build({"type": "OverheadData"}), collate_fn=stacked)
    start = time.process_time()
    for data in islice(chain.from_iterable(repeat(loader)), steps):
        losses = model(**model.data_preprocessor(data, True))
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - start) / steps


def with_runner(steps: int, interval: int) -> list[tuple[int, float]]:
    """Seconds per step of the runner with its default hooks, for each part of the run: (steps done, seconds)."""
    from mmengine.config import Config

    from detkit.engine import Hook, Runner

    class Clock(Hook):
        def __init__(self) -> None:
            self.marks: list[tuple[int, float]] = []

        def before_train_epoch(self, runner: Any) -> None:
            self.marks.append((0, time.process_time()))

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            if (runner.iter + 1) % part == 0:
                self.marks.append((runner.iter + 1, time.process_time()))

    part = max(steps // 10, 1) if steps >= 100_000 else steps
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        loader = {
            "dataset": {"type": "OverheadData"},
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "stacked"},
        }
        hooks = {
            "logger": {"type": "LoggerHook", "interval": interval},
            "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": None},
        }
        cfg = {
            "model": {"type": "OverheadModel"},
            "work_dir": folder,
            "train_dataloader": loader,
            "train_cfg": {"by_epoch": False, "max_iters": steps},
            "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.001}},
            "default_hooks": hooks,
            "device": "cpu",
        }
        with contextlib.redirect_stderr(nowhere):
            runner = Runner.from_cfg(Config(cfg))
            runner.register_hook(clock)
            runner.train()
    pairs = zip(clock.marks, clock.marks[1:], strict=False)
    return [(done, (end - start) / (done - before)) for (before, start), (done, end) in pairs]


def benchmark(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(1)
    register()
    bare(300)
    with_runner(300, args.interval)
    bares, ours, added = [], [], []
    parts: list[tuple[int, float]] = []
    for _ in range(args.runs):
        plain = bare(min(args.steps, 10_000))
        parts = with_runner(args.steps, args.interval)
        whole = statistics.fmean(seconds for _, seconds in parts)
        bares.append(plain)
        ours.append(whole)
        added.append(whole - plain)
    print("| loop of six lines, us per step | runner, us per step | added, us per step |\n|---|---|---|")
    print("| " + " | ".join(f"{statistics.median(values) * 1e6:.0f}" for values in (bares, ours, added)) + " |")
    if len(parts) > 1:
        print("\n| steps done | runner, us per step |\n|---|---|")
        for done, seconds in parts:
            print(f"| {done} | {seconds * 1e6:.0f} |")


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(benchmark, args)


if __name__ == "__main__":
    main()
