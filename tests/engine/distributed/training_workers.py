"""What two processes do in ``test_distributed_training.py``; started by name, so functions of a module."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch
from engine.engine_toys import ToyModel, toy_config
from engine.hooks.logger_ranks import logged
from engine.shapes_run import shapes_config
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import nn

from detkit.engine import Runner
from detkit.engine.distributed import all_gather
from detkit.registry import HOOKS, MODELS


@MODELS.register_module()
class IdleModel(ToyModel):
    """Has a layer that no loss depends on."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.idle = nn.Linear(2, 2)


@HOOKS.register_module()
class Watch(Hook):
    """Notes what the process saw: samples, their noise, buffers at validation, numbers it drew."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.samples: list[list[int]] = []
        self.noise: list[Any] = []
        self.buffers: list[Any] = []
        self.measured: list[Any] = []
        self.drawn: list[float] = []
        self.stop_at = stop_at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.samples.append([sample.img_id for sample in data_batch["data_samples"]])
        self.noise += [one.tolist() for one in data_batch["inputs"]]
        self.drawn.append(torch.rand(()).item())

    def before_val(self, runner: Any) -> None:
        self.buffers.append([buffer.tolist() for buffer in runner.model.buffers()])
        if runner.epoch == self.stop_at:
            raise KeyboardInterrupt
        self.drawn.append(torch.rand(()).item())

    def before_val_epoch(self, runner: Any) -> None:
        self.measured.append([buffer.tolist() for buffer in runner.model.buffers()])

    def after_run(self, runner: Any) -> None:
        self.drawn.append(torch.rand(()).item())


def toy(
    folder: Path, name: str, epochs: int = 2, stop_at: int | None = None, size: int = 10, **changes: Any
) -> tuple[Runner, Watch]:
    """A run of the toy in this process, which is one of several; three samples of ``size`` in a batch."""
    cfg = Config(toy_config(folder / name, epochs, **changes))
    cfg.train_dataloader.update(batch_size=3, dataset={"type": "ToyDataset", "size": size})
    runner = Runner.from_cfg(cfg)
    watch = Watch(stop_at)
    runner.register_hook(watch)
    return runner, watch


def train_pair(folder: str, data: str) -> dict[str, Any]:
    """Everything that is trained in two processes, for ``data`` as ``shapes_config`` wants it."""
    root = Path(folder)
    os.chdir(root)
    torch.set_num_threads(1)
    shapes = Runner.from_cfg(shapes_config(root / "shapes", data, None, total_batch_size=4))
    shapes.train()
    runner, watch = toy(root, "whole", 4)
    runner.train()
    cut, before = toy(root, "cut", 4, stop_at=2)
    with contextlib.suppress(KeyboardInterrupt):
        cut.train()
    resumed, after = toy(root, "cut", 4, resume=True)
    resumed.train()
    found = {
        "wrapped": type(shapes.model).__name__,
        "sharded": sharded(root, data),
        "AP": all_gather(average_precisions(root / "shapes", data)),
        "iterations": (runner.iter, resumed.iter),
        "weights": all_gather({name: value.tolist() for name, value in runner.model.module.state_dict().items()}),
        "samples": all_gather(watch.samples),
        "noise": all_gather(watch.noise),
        "drawn": all_gather(watch.drawn),
        "drawn again": all_gather((before.drawn, after.drawn)),
        "buffers": all_gather(watch.buffers),
        "buffers without a save": all_gather(unsaved(root)),
        "buffers of averages": {update: all_gather(averaged(root, update)) for update in (False, True)},
        "idle": all_gather(failure(root, "idle")),
        "idle is found": failure(root, "found", find_unused_parameters=True),
        "idle stays so": failure(root, "static", model_wrapper_cfg={"static_graph": True}),
        "hook": failure(root, "hook", model_wrapper_cfg={"comm_hook": "fp16_compres"}),
        "compressed": {name: compressed(root, name) for name in (None, "fp16_compress", "bf16_compress")},
        "uneven": failure(root, "uneven", size=13, train_dataloader=uneven()),
        "logged": logged(root),
        "files": sorted(path.name for path in root.iterdir()),
        "logs of others": sorted(path.name for path in root.rglob("*rank1*")),
    }
    return found


def unsaved(root: Path) -> list[Any]:
    """The buffers at the validation of a run that saves nothing before."""
    runner, watch = toy(root, "unsaved", 1, default_hooks={"checkpoint": None})
    runner.train()
    return watch.buffers[0]


def averaged(root: Path, update_buffers: bool) -> list[Any]:
    """The buffers that a validation with an average of the weights uses."""
    hook = {"type": "EMAHook", "update_buffers": update_buffers, "momentum": 0.3}
    runner, watch = toy(root, f"averaged_{update_buffers}", 2, custom_hooks=[hook])
    runner.train()
    return watch.measured


def uneven() -> dict[str, Any]:
    """A loader that gives one process a batch more than the other."""
    return {**toy_config("")["train_dataloader"], "sampler": {"type": "DefaultSampler", "round_up": False}}


def average_precisions(checkpoint_dir: Path, data: str, **changes: Any) -> dict[str, float]:
    """Metrics of the run's last checkpoint, in a run of its own."""
    cfg = shapes_config(checkpoint_dir.with_name("test"), data, 3, **changes)
    cfg.load_from = str(checkpoint_dir / "iter_20.pth")
    return Runner.from_cfg(cfg).test()


def failure(folder: Path, name: str, **changes: Any) -> str:
    """The error of a run with an idle layer, or nothing."""
    try:
        toy(folder, name, 1, model={"type": "IdleModel", "bbox_head": {"type": "ToyHead"}}, **changes)[0].train()
    except ValueError as error:
        return str(error)
    return ""


def compressed(folder: Path, hook: str | None) -> list[float]:
    """The weights that a run of one epoch ends with."""
    runner = toy(folder, f"hook_{hook}", 1, model_wrapper_cfg={"comm_hook": hook})[0]
    runner.train()
    return runner.model.module.bbox_head.fc.weight.flatten().tolist()


def sharded(root: Path, data: str) -> dict[str, Any]:
    """RetinaNet whose backbone is spread over the processes: trained half the way, resumed, trained to the end."""
    for iterations in (10, 20):
        cfg = shapes_config(root / "sharded", data, None, iterations, total_batch_size=4)
        cfg.resume = iterations == 20
        cfg.model_wrapper_cfg = {"type": "FSDP", "min_num_params": 5000}
        cfg.optim_wrapper.clip_grad = {"max_norm": 1e6}  # never reached
        runner = Runner.from_cfg(cfg)
        runner.train()
    local = sum(one.to_local().numel() for one in runner.model.parameters())
    whole = sum(one.numel() for one in runner.model.parameters())
    units = [name for name, part in runner.model.module.named_modules() if type(part).__name__.startswith("FSDP")]
    return {"local": all_gather(local), "whole": whole, "units": units}
