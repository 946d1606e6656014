"""The evaluation loops that a config names: validation and test, of one dataset or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import Evaluator as MMEngineEvaluator
from torch.utils.data import DataLoader

from detkit.engine.evaluation.base_loop import EvaluationLoop, EvaluationPart
from detkit.engine.evaluation.evaluator import Evaluator
from detkit.registry import LOOPS

__all__ = ["MultiDatasetTestLoop", "MultiDatasetValLoop", "TestLoop", "ValLoop"]


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
