"""Runs in which a loss is not finite, and what is noted of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detkit.engine.hooks.hook import Hook


class Watch(Hook):
    """Notes the weights after each iteration."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.weights: dict[int, list[Tensor]] = {0: []}
        self.batches: dict[int, list[str]] = {}

    def before_train(self, runner) -> None:
        self.weights[runner.iter] = copied(runner.model)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.weights[runner.iter + 1] = copied(runner.model)
        self.running_mean = runner.model.body[1].running_mean.clone()
        self.batches[runner.iter + 1] = [sample.get("img_path") for sample in data_batch["data_samples"]]


def copied(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def run(make_runner, name="run", hook=None, logging=2, wrapper=None, **changes):
    """A run of three epochs of three iterations and what it did: the runner, the notes, the error."""
    hooks = {
        "logger": {"type": "LoggerHook", "interval": logging, "tensorboard": False},
        "invalid_loss": {"type": "CheckInvalidLossHook", **(hook or {})},
    }
    sampler = {"type": "DefaultSampler", "shuffle": False}
    data = {"dataset": {"type": "ToyDataset"}, "sampler": sampler, "batch_size": 4, "num_workers": 0}
    changes = {"train_dataloader": data, "val_dataloader": None, "val_cfg": None, "val_evaluator": None, **changes}
    if wrapper is not None:
        changes["optim_wrapper"] = wrapper
    runner = make_runner(name, default_hooks=hooks, **changes)
    watch = Watch()
    runner.register_hook(watch)
    error = None
    try:
        runner.train()
    except FloatingPointError as raised:
        error = raised
    return runner, watch, error


WRAPPERS = {
    "plain": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}},
    "fused": {"optimizer": {"type": "AdamW", "lr": 0.1, "fused": True}, "clip_grad": {"max_norm": 1.0}},
    "float16": {
        "type": "AmpOptimWrapper",
        "dtype": "float16",
        "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9},
        "loss_scale": {"init_scale": 128.0},
    },
}


def iterations(count: int) -> dict:
    return {"type": "IterBasedTrainLoop", "max_iters": count}
