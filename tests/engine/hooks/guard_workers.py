"""What two processes do in the tests of the guard and of accumulated gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine.engine_toys import bad_model, toy_config
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel, is_model_wrapper
from torch import nn

from detkit.engine import OptimWrapper, Runner
from detkit.engine.distributed import all_gather, get_rank
from detkit.engine.run.train_step import train_step


def both(folder: str) -> list[dict[str, Any]]:
    """Everything below, as every process saw it."""
    seen = {"bad": bad_on_one(folder), "window": window()}
    return all_gather(seen)


def bad_on_one(folder: str) -> dict[str, Any]:
    """Two images a process: process 1 gets the odd ones, so sample 9 in its third batch."""
    torch.set_num_threads(1)
    data = toy_config("")["train_dataloader"] | {"sampler": {"type": "DefaultSampler", "shuffle": False}}
    runner = Runner.from_cfg(
        Config(
            toy_config(
                folder,
                model=bad_model(9),
                train_dataloader={**data, "batch_size": 2},
                val_dataloader=None,
                val_cfg=None,
                val_evaluator=None,
                default_hooks={
                    "logger": {"type": "LoggerHook", "interval": 2, "tensorboard": False},
                    "invalid_loss": {"type": "CheckInvalidLossHook", "interval": 1},
                },
            )
        )
    )
    if not is_model_wrapper(runner.model):
        runner.model = MMDistributedDataParallel(runner.model)
    error = ""
    try:
        runner.train()
    except FloatingPointError as raised:
        error = str(raised)
    state = runner.model.module.state_dict()
    return {
        "error": error,
        "iter": runner.iter,
        "finite": all(bool(torch.isfinite(value).all()) for value in state.values()),
        "weights": [parameter.detach().tolist() for parameter in runner.model.module.parameters()],
        "bundles": sorted(path.name for path in Path(folder).glob("invalid_loss_iter_3/*.pth")),
    }


class Factor(BaseModel):
    """One weight times the input; a second that process 1 never uses, a third that nobody does."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(3)])

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> dict[str, torch.Tensor]:
        used = self.weights[0] + (self.weights[1] if get_rank() == 0 else 0)
        return {"loss": (used * inputs).sum()}


def window() -> dict[str, Any]:
    """One iteration of a window of two, the sharing before a checkpoint, and the end of the window."""
    model = MMDistributedDataParallel(Factor(), find_unused_parameters=True)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=2)
    parameters = list(model.module.weights)

    def gradients() -> list[float | None]:
        return [None if parameter.grad is None else parameter.grad.item() for parameter in parameters]

    train_step(model, {"inputs": torch.tensor([1.0 + 2 * get_rank()])}, wrapper)
    own = gradients()
    wrapper.share_begun_window()
    shared = gradients()
    train_step(model, {"inputs": torch.tensor([4.0])}, wrapper)
    wrapper.share_begun_window()  # between windows: nothing
    return {"own": own, "shared": shared, "weights": [parameter.item() for parameter in parameters]}
