"""Validation and test loops: mmengine's contract, on one dataset or several, without traces in the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import Evaluator as MMEngineEvaluator
from mmengine.runner import BaseLoop
from torch import nn
from torch.utils.data import DataLoader

from detkit.engine.distributed import all_gather
from detkit.engine.environment import cudnn_benchmark
from detkit.engine.evaluator import Evaluator
from detkit.engine.seeding import derive_seed, fenced_random_numbers, seed_everything
from detkit.engine.val_loss import ValidationLoss, without_losses
from detkit.registry import EVALUATOR, LOOPS, METRICS

__all__ = [
    "EvaluationLoop",
    "EvaluationPart",
    "MultiDatasetTestLoop",
    "MultiDatasetValLoop",
    "TestLoop",
    "ValLoop",
    "build_evaluator",
    "evaluation_mode",
    "evaluation_parts",
]


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
    """What validation and test share; see :class:`ValLoop`.

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


@LOOPS.register_module()
class ValLoop(EvaluationLoop):
    """Validate on one dataset.

    Args:
        runner: The run.
        dataloader: Its data.
        evaluator: Its metrics.
        fp16: Predict in half precision: float16 on CUDA, bfloat16 on a CPU.
        dtype: ``'float16'`` or ``'bfloat16'``, the same with the type said.
        loss: Compute the losses too, and report their means over the images as ``val/loss`` (the total) and
            ``val/loss_cls`` … beside the metrics, where ``save_best`` and ``EarlyStoppingHook`` find them. The
            pipeline must load annotations. Costs a second forward pass.

    Raises:
        ValueError: Several dataloaders, or a ``dtype`` that is none.
    """

    stage = "val"

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader,
        evaluator: MMEngineEvaluator,
        fp16: bool = False,
        dtype: str | torch.dtype | None = None,
        loss: bool = False,
    ) -> None:
        super().__init__(runner, [_only_part(dataloader, evaluator, self.stage)], fp16, dtype, loss)


@LOOPS.register_module()
class TestLoop(EvaluationLoop):
    """Test on one dataset; arguments as of :class:`ValLoop`, losses are ``test/loss`` …

    Args:
        runner: The run.
        dataloader: Its data.
        evaluator: Its metrics.
        fp16: Predict in half precision.
        dtype: The same with the type said.
        loss: Compute the losses too.
    """

    stage = "test"
    __test__ = False  # pytest would take it for a test

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader,
        evaluator: MMEngineEvaluator,
        fp16: bool = False,
        dtype: str | torch.dtype | None = None,
        loss: bool = False,
    ) -> None:
        super().__init__(runner, [_only_part(dataloader, evaluator, self.stage)], fp16, dtype, loss)


@LOOPS.register_module()
class MultiDatasetValLoop(EvaluationLoop):
    """Validate on several datasets, one after the other; metrics are named ``dataset/metric``.

    ``val_dataloader`` is a list, and ``val_evaluator`` a list with the metric (or list of metrics) of each.
    Every dataset must have the training's classes.

    Args:
        runner: The run.
        dataloader: The datasets' loaders.
        evaluator: The metrics of each.
        names: A name for each, the prefix of its metrics.
        fp16: As of :class:`ValLoop`.
        dtype: As of :class:`ValLoop`.
        loss: As of :class:`ValLoop`; the losses are ``dataset/val/loss`` …

    Raises:
        ValueError: Loaders, evaluators and names differ in number, or two names are the same.
    """

    stage = "val"

    def __init__(
        self,
        runner: Any,
        dataloader: Sequence[DataLoader],
        evaluator: Sequence[Evaluator],
        names: Sequence[str],
        fp16: bool = False,
        dtype: str | torch.dtype | None = None,
        loss: bool = False,
    ) -> None:
        super().__init__(runner, _parts(dataloader, evaluator, names, self.stage), fp16, dtype, loss)


@LOOPS.register_module()
class MultiDatasetTestLoop(EvaluationLoop):
    """Test on several datasets; see :class:`MultiDatasetValLoop`.

    Args:
        runner: The run.
        dataloader: The datasets' loaders.
        evaluator: The metrics of each.
        names: A name for each, the prefix of its metrics.
        fp16: As of :class:`ValLoop`.
        dtype: As of :class:`ValLoop`.
        loss: As of :class:`ValLoop`.
    """

    stage = "test"

    def __init__(
        self,
        runner: Any,
        dataloader: Sequence[DataLoader],
        evaluator: Sequence[Evaluator],
        names: Sequence[str],
        fp16: bool = False,
        dtype: str | torch.dtype | None = None,
        loss: bool = False,
    ) -> None:
        super().__init__(runner, _parts(dataloader, evaluator, names, self.stage), fp16, dtype, loss)


def _only_part(dataloader: Any, evaluator: Any, stage: str) -> EvaluationPart:
    if isinstance(dataloader, Sequence):
        kind = f"MultiDataset{stage.title()}Loop"
        raise ValueError(
            f"{stage}_dataloader: {len(dataloader)} loaders in a list need {stage}_cfg=dict(type={kind!r}, names=[...])"
        )
    return EvaluationPart(None, dataloader, evaluator, f"{stage}_dataloader")


def _parts(dataloaders: Any, evaluators: Any, names: Sequence[str], stage: str) -> list[EvaluationPart]:
    if not isinstance(dataloaders, Sequence) or not isinstance(evaluators, Sequence):
        raise ValueError(f"{stage}_cfg: several datasets need lists as {stage}_dataloader and {stage}_evaluator")
    if not len(dataloaders) == len(evaluators) == len(names) or not names or len(set(names)) < len(names):
        raise ValueError(
            f"{stage}_cfg.names: one name of its own for each dataset expected, got {list(names)} for "
            f"{len(dataloaders)} entries of {stage}_dataloader and {len(evaluators)} of {stage}_evaluator"
        )
    paths = [f"{stage}_dataloader.{index}" for index in range(len(names))]
    return [EvaluationPart(*part) for part in zip(names, dataloaders, evaluators, paths, strict=True)]


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
