"""What a checkpoint says about a run, and how a run takes it up again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapperDict
from torch import Tensor

import detkit
from detkit.checkpoints import class_names, load_weights
from detkit.engine.data.labels import check_same_classes, label_map
from detkit.engine.data.seeding import rng_state, set_rng_state
from detkit.engine.distributed import all_gather
from detkit.engine.hooks.ema import EMAHook
from detkit.engine.hooks.hook import Hook
from detkit.engine.parallel.inner_model import inner_model
from detkit.engine.resuming.from_mmengine import SECTIONS, as_own, is_from_mmengine
from detkit.engine.schedulers import restore_schedulers, schedulers_state

__all__ = ["capture", "check_resumable", "restore"]

_FORMAT = 1
_SECTIONS = ("meta", "state_dict", "optimizer", "message_hub", "rng", "position")


def capture(runner: Any, meta: Mapping[str, Any], optimizer: bool, schedulers: bool) -> dict[str, Any]:
    """Everything that must be saved of a run.

    Args:
        runner: The run.
        meta: ``epoch`` and ``iter`` done, and whatever else the caller wants to be found there.
        optimizer: Whether to save what resuming needs of the optimizer.
        schedulers: The same for schedulers.

    Returns:
        ``meta``, ``state_dict``, ``message_hub``, ``rng``, ``position``, ``modules``, ``hooks`` and, if wanted,
        ``optimizer``, ``param_schedulers``.
    """
    model = inner_model(runner.model)
    dataset = runner.train_dataloader.dataset
    hub = runner.message_hub
    position = runner.train_loop.state_dict() if hasattr(runner.train_loop, "state_dict") else {}
    checkpoint: dict[str, Any] = {
        "meta": {
            **meta,
            "format": _FORMAT,
            "cfg": runner.config_text,
            "seed": runner.seed,
            "experiment_name": runner.experiment_name,
            "label_map": label_map(dataset),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "detkit_version": detkit.__version__,
            "torch_version": str(torch.__version__),
        },
        "state_dict": model.state_dict(),
        "message_hub": {key: value for key, value in hub.runtime_info.items() if hub._resumed_keys.get(key)},
        "rng": all_gather(rng_state()),
        "position": position,
        "modules": {name: state for name, module in _remembering(model) if (state := module.resume_state())},
        "hooks": {name: state for name, hook in _named_hooks(runner) if (state := hook.state_dict())},
    }
    if optimizer:
        checkpoint["optimizer"] = runner.optim_wrapper.state_dict()
    if schedulers and runner.param_schedulers is not None:
        checkpoint["param_schedulers"] = schedulers_state(runner.param_schedulers)
    return checkpoint


def restore(runner: Any, checkpoint: dict[str, Any], path: str) -> None:
    """Take a run up where ``checkpoint`` left it; model, optimizer and schedulers are built already.

    Args:
        runner: The run.
        checkpoint: As :func:`capture` made it, or mmengine.
        path: The file, for messages.

    Raises:
        ValueError: The checkpoint cannot be resumed from, or belongs to another model, dataset or schedule.
    """
    if is_from_mmengine(checkpoint):
        checkpoint = as_own(runner, checkpoint, path)
    meta = checkpoint["meta"]
    dataset = runner.train_dataloader.dataset
    own = (label_map(dataset) or {}).get("classes")
    check_same_classes(class_names(checkpoint), path, own, "train_dataloader.dataset")
    _check_average(runner, checkpoint, path)
    position = _position(runner, checkpoint, path)
    runner.call_hook("after_load_checkpoint", checkpoint=checkpoint)
    model = inner_model(runner.model)
    load_weights(model, checkpoint, strict=True, name=path)
    remembered = checkpoint.get("modules", {})
    for name, module in _remembering(model):
        if name in remembered:
            module.load_resume_state(remembered[name])
    try:
        runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: its optimizer state does not fit optim_wrapper: {error}") from error
    _align_optimizer_state(runner.optim_wrapper)
    restore_schedulers(runner.param_schedulers, checkpoint.get("param_schedulers"), path, runner.logger)
    for key, value in checkpoint["message_hub"].items():
        runner.message_hub.update_info(key, value)
    _restore_hooks(runner, checkpoint.get("hooks", {}), path)
    if position:
        runner.train_loop.load_state_dict(position, meta["epoch"], meta["iter"])
    else:
        runner.train_loop._epoch, runner.train_loop._iter = meta["epoch"], meta["iter"]
    _restore_random_numbers(runner, checkpoint["rng"], path)


def _remembering(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """Modules that go through a training by more than their weights: ``resume_state()`` and ``load_resume_state()``."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "resume_state")]


def _restore_random_numbers(runner: Any, states: Sequence[dict[str, Any]] | None, path: str) -> None:
    if states is None:  # mmengine's
        return
    if len(states) == runner.world_size:
        set_rng_state(states[runner.rank])
    else:
        # Each iteration is seeded by its number in any case.
        runner.logger.warning(
            "%s: was written by %d processes, there are %d now: hooks that draw random numbers draw others",
            path,
            len(states),
            runner.world_size,
        )


def check_resumable(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuse a checkpoint that holds weights only.

    Raises:
        ValueError: With what is missing.
    """
    wanted = SECTIONS if is_from_mmengine(checkpoint) else _SECTIONS
    missing = [key for key in wanted if key not in checkpoint]
    if missing:
        raise ValueError(
            f"{path}: a run cannot be resumed from this file, as it lacks {', '.join(missing)}; start a new run "
            f"from its weights with --cfg-options load_from={path}"
        )


def _position(runner: Any, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, int]:
    """Where to go on in the data; empty for a loop that does not know places."""
    position = checkpoint["position"]
    if not position or not hasattr(runner.train_loop, "load_state_dict"):
        return {}
    length = len(runner.train_dataloader)
    if position["batches"] != length:
        raise ValueError(
            f"{path}: a pass over the data had {position['batches']} iterations then, and has {length} now; a run is "
            "resumed with the dataset, the batch size and the number of processes it was started with"
        )
    return position


def _check_average(runner: Any, checkpoint: Mapping[str, Any], path: str) -> None:
    """The weights in the file may be an average, to which the optimizer's state does not belong."""
    if "ema_state_dict" in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise ValueError(
            f"{path}: its weights are an average over the training, and the run has no EMAHook (or SWAHook) to go on "
            "from those beside it; add the hook that the run was started with to custom_hooks, or start a new run "
            f"from the average with --cfg-options load_from={path}"
        )


def _named_hooks(runner: Any) -> list[tuple[str, Hook]]:
    """Hooks that may have a state; a second one of a class is ``Name#2``."""
    count: Counter[str] = Counter()
    named = []
    for hook in runner.hooks:
        if isinstance(hook, Hook):
            name = type(hook).__name__
            count[name] += 1
            named.append((name if count[name] == 1 else f"{name}#{count[name]}", hook))
    return named


def _restore_hooks(runner: Any, saved: Mapping[str, Any], path: str) -> None:
    hooks = dict(_named_hooks(runner))
    for name, state in saved.items():
        if name in hooks:
            hooks[name].load_state_dict(state)
        else:
            runner.logger.warning("%s: holds the state of a %s, which this run does not have", path, name)


def _align_optimizer_state(optim_wrapper: Any) -> None:
    """Give moments the memory format of their parameters; fused CPU kernels walk both as raw memory."""
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    for wrapper in wrappers:
        for parameter, state in wrapper.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
