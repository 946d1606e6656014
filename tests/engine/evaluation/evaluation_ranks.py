"""What two processes do in ``test_val_loss.py``; started by name, so functions of a module."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
from engine.engine_toys import ToyDataset, ToyModel
from torch import distributed, nn

from detkit.engine.distributed import all_gather, get_rank
from detkit.engine.evaluation.base_loop import _means_over_processes
from detkit.engine.evaluation.val_loss import ValidationLoss
from detkit.engine.hooks import EvalFunctionHook


class Collective(ToyModel):
    """Its loss waits for the other processes, as normalisers of other toolboxes do."""

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        losses = super().forward(inputs, data_samples, mode)
        if mode == "loss":
            distributed.all_reduce(torch.ones(()))
        return losses


def batches(*groups: list[int]) -> list[dict[str, Any]]:
    """Batches of the toy images of these indices, without noise."""
    made = []
    for group in groups:
        samples = [ToyDataset()[index] for index in group]
        made.append(
            {
                "inputs": [torch.tensor([index * 0.1, 1.0, -index * 0.2, 0.5]) for index in group],
                "data_samples": [sample["data_samples"] for sample in samples],
            }
        )
    return made


class Loader(list):
    """Batches as a data loader gives them."""

    dataset = ToyDataset()


def mean_losses(model: nn.Module, own: list[dict[str, Any]]) -> dict[str, float]:
    loss = ValidationLoss(model, Loader(own), "val_dataloader")
    with torch.no_grad():
        for batch in own:
            loss.add(batch)
    return loss.means()


def toy_model(kind: type[ToyModel]) -> ToyModel:
    torch.manual_seed(0)
    return kind(bbox_head={"type": "ToyHead"}).eval()


def two() -> dict[str, Any]:
    """Losses of uneven shares, and a function that the first process evaluates slowly."""
    torch.set_num_threads(1)
    rank, model = get_rank(), toy_model(Collective)
    uneven = mean_losses(model, batches([0, 1, 2, 3], [4, 5, 6, 7]) if rank == 0 else batches([8, 9]))
    try:
        mean_losses(model, batches([0, 1], [2]) if rank == 0 else [])
        one_empty = "no error"
    except ValueError as error:
        one_empty = str(error)
    times = {}

    def evaluate(runner: Any) -> dict[str, float] | None:
        time.sleep(0.0 if rank else 0.5)
        times["done"] = time.monotonic()
        return None if rank else {"AP": 0.5}

    hook = EvalFunctionHook(evaluate)
    metrics: dict[str, Any] = {}
    hook.after_val_epoch(SimpleNamespace(model=model), metrics=metrics)
    times["left"] = time.monotonic()
    return {
        "uneven": all_gather(uneven),
        "handed over": all_gather(_means_over_processes({"loss": [6.0]} if rank else {"loss": [1.0, 2.0]})),
        "one empty": all_gather(one_empty),
        "metrics": all_gather(metrics),
        "times": all_gather(times),
    }
