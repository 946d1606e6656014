"""What three processes do in ``test_distributed_training.py``; started by name, so functions of a module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from engine.distributed.training_workers import average_precisions
from engine.engine_toys import toy_config
from mmengine.config import Config
from mmengine.evaluator import BaseMetric

from detkit.engine import Runner
from detkit.engine.distributed import all_gather
from detkit.registry import METRICS


@METRICS.register_module()
class Names(BaseMetric):
    """The images that were evaluated, as one number per image, and a failure where asked."""

    default_prefix = "names"

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.fail = fail

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(
            (sample["img_id"], data[0].item()) for sample, data in zip(data_samples, data_batch["inputs"], strict=True)
        )

    def compute_metrics(self, results: list[Any]) -> dict[str, Any]:
        if self.fail:
            raise KeyError("broken metric")
        return {"seen": [one for one, _ in results], "noise": dict(results)}


def evaluate_by_three(folder: str, data: str) -> dict[str, Any]:
    """Metrics of the checkpoint in ``folder`` and of toys, in each of three processes."""
    root = Path(folder)
    os.chdir(root)
    torch.set_num_threads(1)
    return {
        "AP": all_gather(average_precisions(root / "pair" / "shapes", data)),
        "ten": all_gather(seen(root, 10)),
        "two": all_gather(seen(root, 2)),
        "stretches": all_gather(seen(root, 10, {"type": "InferenceSampler"})),
        "broken": all_gather(broken(root)),
        "folders": sorted(path.name for path in root.iterdir()),
    }


def seen(root: Path, size: int, sampler: Any = None, **metric: Any) -> dict[str, Any]:
    """Which images a test of ``size`` images evaluated."""
    cfg = Config(toy_config(root / "toy", test_evaluator={"type": "Names", **metric}))
    cfg.test_dataloader.dataset.size = size
    if sampler:
        cfg.test_dataloader.sampler = sampler
    return Runner.from_cfg(cfg).test()


def broken(root: Path) -> str:
    try:
        seen(root, 4, fail=True)
    except (ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
