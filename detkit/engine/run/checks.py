"""What is checked of a run before its first step: labels of data, heads, metrics and loaded weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.runner import BaseLoop

from detkit.checkpoints import class_names
from detkit.engine.data.labels import (
    check_heads,
    check_metric,
    check_same_classes,
    class_difference,
    label_map,
)
from detkit.engine.evaluation.base_loop import evaluation_parts
from detkit.engine.parallel.inner_model import inner_model

__all__ = ["check_evaluation", "check_loaded_weights", "check_training"]

_TRAIN = "train_dataloader.dataset"


def check_training(runner: Any) -> None:
    """Hold heads against the training data, and the training data against the data it is validated on.

    Raises:
        ValueError: With both class lists or counts, and their config paths.
    """
    dataset = runner.train_dataloader.dataset
    check_heads(inner_model(runner.model), dataset, _TRAIN)
    if runner.val_loop is None:
        return
    check_evaluation(runner, "val", runner.val_loop)
    for part in evaluation_parts(runner.val_loop):
        check_same_classes(_classes(dataset), _TRAIN, _classes(part.dataloader.dataset), f"{part.path}.dataset")


def check_evaluation(runner: Any, kind: str, loop: Any) -> None:
    """Hold heads and metrics against the data of an evaluation.

    Args:
        runner: The run.
        kind: ``val`` or ``test``.
        loop: Its loop.

    Raises:
        ValueError: With both class counts or files, and their config paths.
    """
    for part in evaluation_parts(loop, kind):
        dataset = part.dataloader.dataset
        check_heads(inner_model(runner.model), dataset, f"{part.path}.dataset")
        for metric in part.evaluator.metrics:
            check_metric(metric, dataset, part.path.replace("dataloader", "evaluator"))


def check_loaded_weights(runner: Any, checkpoint: Mapping[str, Any], path: str) -> None:
    """Hold the classes that weights were trained for against those of the data.

    Training may start from weights of other classes, with a warning; evaluating them makes no sense. Called before the
    weights are loaded, so that the message is of classes and not of shapes.

    Args:
        runner: The run.
        checkpoint: The content of the file.
        path: The file, for the message.

    Raises:
        ValueError: An evaluation of other classes.
    """
    trained = class_names(checkpoint)
    if isinstance(runner._train_loop, BaseLoop):
        difference = class_difference(trained, path, _classes(runner.train_dataloader.dataset), _TRAIN)
        if difference is not None:
            runner.logger.warning(
                "%s; rows of classes that both name are taken over, the others start anew", difference
            )
        return
    for kind, loop in (("test", runner._test_loop), ("val", runner._val_loop)):
        if isinstance(loop, BaseLoop):
            for part in evaluation_parts(loop, kind):
                check_same_classes(trained, path, _classes(part.dataloader.dataset), f"{part.path}.dataset")
            return


def _classes(dataset: Any) -> list[str] | None:
    return (label_map(dataset) or {}).get("classes")
