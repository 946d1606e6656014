"""Two steps of a run and two batches of its validation, to see whether it will go."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import torch

from detkit.engine.evaluation.base_loop import EvaluationPart, evaluation_mode, evaluation_parts
from detkit.engine.evaluation.val_loss import ValidationLoss
from detkit.engine.hooks.hook import Hook
from detkit.engine.parallel.inner_model import inner_model
from detkit.engine.run.runner import Runner

__all__ = ["dry_run"]

_WRITING = ("checkpoint", "visualization")  # default hooks that only leave files


class _Report(Hook):
    """Notes what two iterations report, and ends the run."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append({name: float(value) for name, value in (outputs or {}).items()})
        if len(self.losses) == 2:
            raise _Enough


class _Enough(Exception):
    """Two iterations are done."""


def dry_run(cfg: Any) -> list[str]:
    """Build everything a config describes, train two iterations, and predict two batches of the validation set.

    Nothing is left behind: the work directory is a temporary one.

    Args:
        cfg: The config; see ``detkit.config.load``.

    Returns:
        What was seen, a line for each part.

    Raises:
        Exception: Whatever would have stopped the run.
    """
    cfg = cfg.copy()
    cfg.resume = False
    cfg.default_hooks = _hooks(cfg.get("default_hooks") or {})
    report = _Report()
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        runner = Runner.from_cfg(cfg)
        runner.register_hook(report)
        with suppress(_Enough):
            runner.train()
        lines = _describe(runner)
        for step, losses in enumerate(report.losses, start=1):
            lines.append(f"step {step}     " + "  ".join(f"{name} {value:.4g}" for name, value in losses.items()))
        if runner.val_loop is not None:
            lines += [_validate(runner, part) for part in evaluation_parts(runner.val_loop)]
        if runner.device.type == "cuda":
            lines.append(f"memory     {torch.cuda.max_memory_allocated(runner.device) / 2**20:.0f} MiB")
    return lines


def _hooks(hooks: Mapping[str, Any]) -> dict[str, Any]:
    """The default hooks without those that leave files; a loss that is not finite ends the run at once."""
    kept = {name: hook for name, hook in hooks.items() if name not in _WRITING}
    guard = kept.get("invalid_loss", {"type": "CheckInvalidLossHook"})
    if guard is not None:
        guard = {**guard, "interval": 1, "bundle": False}  # a bundle would go with the temporary folder
    return {**kept, "checkpoint": None, "invalid_loss": guard}


def _describe(runner: Any) -> list[str]:
    model = inner_model(runner.model)
    parameters = list(model.parameters())
    trained = sum(one.numel() for one in parameters if one.requires_grad)
    loader, loop = runner.train_dataloader, runner.train_loop
    count = sum(one.numel() for one in parameters)
    return [
        f"model      {type(model).__name__}, {count:,} parameters, {trained:,} trained",
        f"data       {len(loader.dataset):,} images, {len(loader):,} batches per pass, {loop.max_iters:,} iterations",
    ]


def _validate(runner: Any, part: EvaluationPart) -> str:
    count = 0
    with evaluation_mode(runner.model), torch.no_grad():
        wanted = getattr(runner.val_loop, "loss", False)
        losses = ValidationLoss(runner.model, part.dataloader, part.path) if wanted else None
        for batch in islice(part.dataloader, 2):
            if losses is not None:
                losses.add(batch)
            predictions = runner.model.val_step(batch)
            part.evaluator.process(data_samples=predictions, data_batch=batch)
            count += len(predictions)
    metrics = ", ".join(type(metric).__name__ for metric in part.evaluator.metrics)
    name = f" of {part.name}" if part.name else ""
    return f"validation {count} of {len(part.dataloader.dataset):,} images{name} predicted and taken by {metrics}"
