"""A run of mmengine's own Runner, and its config for detkit: what the first wrote the second goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from engine.engine_toys import CLASSES, ToyModel, toy_config
from mmengine.runner import Runner as MMEngineRunner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset

from detkit.registry import DATASETS, MODELS
from detkit.structures.sample import DetDataSample

EPOCHS = 3


@MODELS.register_module()
class SteadyToyModel(ToyModel):
    """Without dropout; a frozen layer and a normalisation, which rules for parameters tell apart."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))
        self.body[3].requires_grad_(False)

    def init_weights(self) -> None:
        torch.manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)


@DATASETS.register_module()
class SteadyToyDataset(Dataset):
    """The same samples in the same order, whoever draws them."""

    def __init__(self, classes: tuple[str, ...] = CLASSES) -> None:
        self.metainfo = {"classes": tuple(classes)}

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = torch.randn(4, generator=torch.Generator().manual_seed(index))
        sample = DetDataSample(metainfo={"img_path": f"{index}.jpg", "img_id": index})
        sample.gt_instances = InstanceData(labels=torch.tensor([index % 3]))
        return {"inputs": inputs, "data_samples": sample}


def config(work_dir: Any, by_epoch: bool = True, **changes: Any) -> dict[str, Any]:
    """For detkit."""
    sampler = {"type": "DefaultSampler" if by_epoch else "InfiniteSampler", "shuffle": False}
    loader = {"dataset": {"type": "SteadyToyDataset"}, "sampler": sampler, "batch_size": 4, "num_workers": 0}
    epochs = {"by_epoch": True, "max_epochs": EPOCHS, "val_interval": EPOCHS + 1}
    iterations = {"by_epoch": False, "max_iters": 3 * EPOCHS, "val_interval": 100}
    unused = dict.fromkeys(f"{part}_{kind}" for part in ("val", "test") for kind in ("dataloader", "cfg", "evaluator"))
    options = {
        "model": {"type": "SteadyToyModel", "bbox_head": {"type": "ToyHead"}},
        "train_dataloader": loader,
        "train_cfg": epochs if by_epoch else iterations,
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 5},
            {"type": "MultiStepLR", "by_epoch": by_epoch, "milestones": [2 if by_epoch else 6], "gamma": 0.3},
        ],
        "default_hooks": {
            "logger": {"type": "LoggerHook", "interval": 2, "tensorboard": False},
            "checkpoint": {"type": "CheckpointHook", "interval": 1 if by_epoch else 2, "by_epoch": by_epoch},
        },
    }
    return toy_config(work_dir, **unused | options | changes)


def run_mmengine(work_dir: Path, by_epoch: bool = True, **changes: Any) -> None:
    """The same run by mmengine, which leaves its own checkpoints in ``work_dir``."""
    cfg = config(work_dir, by_epoch, **changes)
    model = MODELS.build(cfg["model"])
    model.init_weights()
    model.init_weights = lambda: None
    loader = {**cfg["train_dataloader"], "dataset": SteadyToyDataset(), "collate_fn": {"type": "pseudo_collate"}}
    hooks = {"checkpoint": cfg["default_hooks"]["checkpoint"], "logger": {"type": "LoggerHook", "interval": 2}}
    MMEngineRunner(
        model,
        str(work_dir),
        loader,
        train_cfg=cfg["train_cfg"],
        optim_wrapper=cfg["optim_wrapper"],
        param_scheduler=cfg["param_scheduler"],
        default_hooks=hooks,
        custom_hooks=cfg.get("custom_hooks"),
        experiment_name=work_dir.name,
        randomness={"seed": 5},
        log_level="ERROR",
        default_scope="mmengine",
    ).train()
