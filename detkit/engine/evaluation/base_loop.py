"""How validation and test go: mmengine's contract, on one dataset or several, without traces in the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import Evaluator as MMEngineEvaluator
from mmengine.runner import BaseLoop
from torch import nn

from detkit.engine.data.seeding import derive_seed, fenced_random_numbers, seed_everything
from detkit.engine.distributed import all_gather
from detkit.engine.environment import cudnn_benchmark
from detkit.engine.evaluation.evaluator import Evaluator
from detkit.engine.evaluation.val_loss import ValidationLoss, without_losses
from detkit.registry import EVALUATOR, METRICS

__all__ = ["EvaluationLoop", "EvaluationPart", "build_evaluator", "evaluation_mode", "evaluation_parts"]


class EvaluationPart(NamedTuple):
    """One dataset of an evaluation.

    Attributes:
        name: Prefix of its metrics; None where there is only this one.
        dataloader: Its data.
        evaluator: Its metrics.
        path: Config path of its dataloader.
    """

    name: str | None
    dataloader: Any
    evaluator: MMEngineEvaluator
    path: str


def evaluation_parts(loop: Any, stage: str = "val") -> list[EvaluationPart]:
    """The datasets of any evaluation loop, also of one that is not detkit's.

    Args:
        loop: The loop.
        stage: What it is for, ``val`` or ``test``.
    """
    return getattr(loop, "parts", None) or [
        EvaluationPart(None, loop.dataloader, loop.evaluator, f"{stage}_dataloader")
    ]


def build_evaluator(cfg: Any) -> MMEngineEvaluator:
    """An evaluator of one metric, of several, or of a type of its own; one that is built already stays."""
    if isinstance(cfg, MMEngineEvaluator):
        return cfg
    if isinstance(cfg, Mapping) and "metrics" in cfg:
        return EVALUATOR.build({"type": "Evaluator", **cfg})
    metrics = [cfg] if isinstance(cfg, Mapping) else cfg
    return Evaluator([METRICS.build(metric) if isinstance(metric, Mapping) else metric for metric in metrics])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode; afterwards, also after an error, each module is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class EvaluationLoop(BaseLoop):
    """What validation and test share; see ``evaluation_loops.py``.

    Each batch is seeded by its number, so that an evaluation draws the same numbers whenever it runs. An error
    leaves the model in the mode it was in, and the run's random numbers where they were.

    Args:
        runner: The run.
        parts: The datasets, with their metrics.
        fp16: Predict in half precision: float16 on CUDA, bfloat16 on a CPU.
        dtype: ``'float16'`` or ``'bfloat16'``, the same with the type said.
        loss: Compute the losses too.

    Attributes:
        dataloader: Of the dataset that is evaluated, else the first one's; ``evaluator`` the same.
    """

    stage: str

    def __init__(
        self, runner: Any, parts: Sequence[EvaluationPart], fp16: bool, dtype: str | torch.dtype | None, loss: bool
    ) -> None:
        super().__init__(runner, parts[0].dataloader)
        self.parts = list(parts)
        self.fp16 = fp16
        self.dtype = _precision(fp16, dtype, runner.device.type, f"{self.stage}_cfg")
        self.loss = loss
        for part in self.parts:
            part.evaluator.dataset_meta = getattr(part.dataloader.dataset, "metainfo", None)
        self._enter(self.parts[0])

    def run(self) -> dict[str, Any]:
        """Evaluate on each dataset.

        Returns:
            Metrics by name, those of several datasets as ``dataset/metric``.
        """
        runner, stage = self.runner, self.stage
        metrics: dict[str, Any] = {}
        # Its images have ever new shapes, at each of which cuDNN would try all algorithms.
        with evaluation_mode(runner.model), cudnn_benchmark(False):
            runner.call_hook(f"before_{stage}")
            runner.call_hook(f"before_{stage}_epoch")
            for part in self.parts:
                self._enter(part)
                # Not around the hooks at the end: a checkpoint they write holds the training's random numbers.
                with fenced_random_numbers():
                    found = self._evaluate(part)
                prefix = f"{part.name}/" if part.name else ""
                metrics.update({f"{prefix}{name}": value for name, value in found.items()})
            self._enter(self.parts[0])
            runner.call_hook(f"after_{stage}_epoch", metrics=metrics)
            runner.call_hook(f"after_{stage}")
        return metrics

    def _enter(self, part: EvaluationPart) -> None:
        self.dataloader, self.evaluator = part.dataloader, part.evaluator
        self.runner.visualizer.dataset_meta = getattr(part.dataloader.dataset, "metainfo", None)

    def _evaluate(self, part: EvaluationPart) -> dict[str, Any]:
        model = self.runner.model
        losses = ValidationLoss(model, part.dataloader, part.path) if self.loss else None
        own: dict[str, list[float]] = {}
        for idx, data_batch in enumerate(part.dataloader):
            seed = derive_seed(self.runner.seed, self.stage, self.runner.rank, idx)
            self.runner.call_hook(f"before_{self.stage}_iter", batch_idx=idx, data_batch=data_batch)
            with torch.no_grad(), torch.autocast(self.runner.device.type, self.dtype, enabled=self.dtype is not None):
                if losses is not None:
                    seed_everything(seed)
                    losses.add(data_batch)
                seed_everything(seed)  # predictions are the same with and without losses
                outputs = model.val_step(data_batch) if self.stage == "val" else model.test_step(data_batch)
            outputs = without_losses(outputs, own)
            part.evaluator.process(data_samples=outputs, data_batch=data_batch)
            self.runner.call_hook(f"after_{self.stage}_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)
        metrics: dict[str, Any] = part.evaluator.evaluate(len(part.dataloader.dataset))
        metrics.update({f"{self.stage}/{name}": value for name, value in _means_over_processes(own).items()})
        if losses is not None:
            metrics.update({f"{self.stage}/{name}": value for name, value in losses.means().items()})
        return metrics


def _means_over_processes(values: dict[str, list[float]]) -> dict[str, float]:
    """The mean of what all processes have under a name: hooks that stop a run by it must all see the same number."""
    together: dict[str, list[float]] = {}
    for own in all_gather(values):
        for name, numbers in own.items():
            together.setdefault(name, []).extend(numbers)
    return {name: sum(numbers) / len(numbers) for name, numbers in together.items()}


def _precision(fp16: bool, dtype: str | torch.dtype | None, device: str, path: str) -> torch.dtype | None:
    """The type that predictions are computed in; None leaves it to the model."""
    if dtype is None:
        return (torch.float16 if device == "cuda" else torch.bfloat16) if fp16 else None
    for name, known in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        if dtype in (name, known):
            return known
    raise ValueError(f"{path}.dtype: 'float16', 'bfloat16' or None expected, got {dtype!r}")
