"""What a training loop of one's own takes from a config, beside the builders of data, optimizer and schedules.

``tools/train_plain.py`` shows such a loop; the Runner's builds the same parts in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.evaluator import Evaluator
from torch import nn
from torch.utils.data import DataLoader

from detkit.engine.data.seeding import derive_seed, fenced_random_numbers, seed_everything
from detkit.engine.data.sharding import take_each_sample_once
from detkit.engine.evaluation.base_loop import evaluation_mode
from detkit.engine.parallel import sync_buffers
from detkit.registry import MODELS, building

__all__ = ["RunLength", "build_initialized_model", "evaluate", "run_length"]


class RunLength(NamedTuple):
    """How long a run is, in iterations.

    Attributes:
        iters: Iterations of the run.
        epoch: Iterations of a pass over the data.
        val_interval: Iterations between validations; 0 for one at the end only.
    """

    iters: int
    epoch: int
    val_interval: int


def run_length(train_cfg: Mapping[str, Any], epoch: int) -> RunLength:
    """The length of the run that a ``train_cfg`` describes.

    Args:
        train_cfg: With ``max_iters`` or ``max_epochs``, in which ``val_interval`` counts too.
        epoch: Iterations of a pass over the data.

    Raises:
        KeyError: It has neither.
    """
    if "max_iters" in train_cfg:
        return RunLength(train_cfg["max_iters"], epoch, max(0, train_cfg.get("val_interval", 1000)))
    if "max_epochs" not in train_cfg:
        raise KeyError(f"train_cfg: max_epochs or max_iters was expected, got {dict(train_cfg)}")
    return RunLength(train_cfg["max_epochs"] * epoch, epoch, max(0, train_cfg.get("val_interval", 1)) * epoch)


def build_initialized_model(cfg: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a model with the weights that a run of this seed starts from."""
    seed_everything(seed)
    with building("model", cfg):
        model = MODELS.build(cfg)
    seed_everything(derive_seed(seed, "weights"))
    if hasattr(model, "init_weights"):
        model.init_weights()
    return model


def evaluate(model: nn.Module, dataloader: DataLoader, evaluator: Evaluator) -> dict[str, Any]:
    """Metrics of ``model`` on a dataset; modes of modules and random numbers are afterwards what they were.

    Running statistics become the means over the processes: save after it.

    Args:
        model: Of mmengine's kind, with a ``val_step``; all processes of the run call this.
        dataloader: The data; each process takes its share, and each sample is taken once.
        evaluator: The metrics.

    Returns:
        Metrics by name.
    """
    take_each_sample_once(dataloader)
    sync_buffers(model)  # each process has running statistics of its own
    evaluator.dataset_meta = getattr(dataloader.dataset, "metainfo", None)
    step: Any = model.val_step
    with evaluation_mode(model), torch.no_grad(), fenced_random_numbers():
        for batch in dataloader:
            evaluator.process(data_samples=step(batch), data_batch=batch)
        return evaluator.evaluate(len(dataloader.dataset))  # type: ignore[arg-type]
