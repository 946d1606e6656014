"""What two processes log that do not note the same; called in the processes of ``training_workers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.engine_toys import toy_config
from mmengine.config import Config

from detkit.engine import Hook, Runner
from detkit.engine.distributed import all_gather, get_rank


class Uneven(Hook):
    """Notes names that the other process lacks, in another order, and waits longer for data by the rank."""

    priority = "NORMAL"

    def __init__(self) -> None:
        self.losses: list[float] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        runner.train_loop.stream.load_time = 1.0 + get_rank()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        rank = get_rank()
        self.losses.append(float(outputs["loss"]))
        if rank == 1:
            runner.events.put_scalar("common", 3.0)
        runner.events.put_scalar(f"only_{rank}", 1.0)
        if rank == 0:
            runner.events.put_scalar("common", 1.0)
            if batch_idx % 2:
                runner.events.put_scalar("common", 1.0)


def logged(folder: Path) -> dict[str, Any]:
    """Lines of the first process, losses of all, and which files each wrote."""
    cfg = Config(toy_config(folder / "logged", train_cfg={"type": "IterBasedTrainLoop", "max_iters": 4}))
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    hook = Uneven()
    runner.register_hook(hook)
    runner.train()
    text = Path(runner.work_dir, "metrics.jsonl").read_text() if get_rank() == 0 else ""
    return {
        "lines": [json.loads(line) for line in text.splitlines()],
        "losses": all_gather(hook.losses),
        "events": all_gather(sorted(runner.events.histories())),
    }
