"""A run on another number of images per step than its config was written for: learning rate and schedule follow.

The linear rule of Goyal et al., https://arxiv.org/abs/1706.02677, section 2.1. MMDetection's ``auto_scale_lr`` scales
the learning rate; Detectron2's ``auto_scale_workers`` scales what is counted in iterations, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from detkit.config import loads
from detkit.engine.distributed import get_world_size, is_distributed
from detkit.engine.distributed.init import translate_environment
from detkit.registry import check_keys

__all__ = ["Scaled", "auto_scale_cfg", "base_batch", "expected_world_size", "other_batch", "scaled_values"]

Config = TypeVar("Config")
Path = tuple[str | int, ...]

_KEYS = {"enable", "base_batch_size", "base_accumulative_counts", "scale_schedule"}
_LOOP_STEPS = ("max_iters", "val_interval", "val_begin", "dynamic_intervals")
_SCHEDULE_STEPS = (
    *("begin", "end", "milestones", "num_updates", "periods", "step_size", "T_max", "total_steps"),
    "warmup_iters",
)
_HOOK_STEPS = ("interval", "save_begin", "begin")
_RATES = ("eta_min", "eta_max", "min_value")


class Scaled(NamedTuple):
    """A value that another batch size changes.

    Attributes:
        path: Its config path.
        before: As the config has it.
        after: As it is for the run.
    """

    path: Path
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.before} -> {self.after}"


def auto_scale_cfg(cfg: Config, world_size: int) -> Config:
    """The config for a run of ``world_size`` processes; the one given is not changed.

    Learning rates (``lr``, ``eta_min`` ...) are multiplied by the images per update of the run over
    ``auto_scale_lr.base_batch_size``. In a run that counts iterations, its length, milestones, warm-up and the
    intervals of validation and checkpoints are divided by the images per iteration over those that the config is for,
    rounded as Python does, and at least 1; so it sees as many images as it was meant to. Epochs need no scaling.

    Args:
        cfg: Config of a run. ``auto_scale_lr`` has ``enable``, ``base_batch_size`` (images per update the config is
            for), ``base_accumulative_counts`` (iterations per update it is for, 1) and ``scale_schedule`` (True; False
            leaves all but the learning rates as they are, as MMDetection does).
        world_size: Number of processes.

    Returns:
        A config that needs no scaling any more: its ``base_batch_size`` is that of the run. ``cfg`` itself where there
        is nothing to change.

    Raises:
        KeyError: ``base_batch_size`` or the learning rate is missing, or a key nothing reads.
        ValueError: ``base_batch_size`` is no positive number, or ``world_size`` is none.
    """
    changed: Any = cfg
    for path, _, after in scaled_values(cfg, world_size):
        changed = _with(changed, path, after)
    return changed


def scaled_values(cfg: Any, world_size: int) -> list[Scaled]:
    """What :func:`auto_scale_cfg` changes, in its order."""
    options = cfg.get("auto_scale_lr")
    base = base_batch(options)
    wrappers = dict(_optimizers(cfg.get("optim_wrapper")))
    if base is None or not wrappers or cfg.get("train_dataloader") is None:
        return []
    if world_size < 1:
        raise ValueError(f"auto_scale_lr: at least one process was expected, got world_size={world_size}")
    counts = {path: wrapper.get("accumulative_counts", 1) for path, wrapper in wrappers.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"auto_scale_lr: accumulative_counts must be the same for every optimizer, got {counts}")
    accumulated = next(iter(counts.values()))
    images = _images_per_iteration(cfg["train_dataloader"], world_size)
    rate = images * accumulated / base
    length = images * options.get("base_accumulative_counts", 1) / base
    changes = [*_rates(cfg, wrappers, rate)] if rate != 1 else []
    if length != 1 and "max_iters" in (cfg.get("train_cfg") or {}) and options.get("scale_schedule", True):
        changes += _lengths(cfg, length)
    if changes:
        changes.append(Scaled(("auto_scale_lr", "base_batch_size"), base, images * accumulated))
        if accumulated != options.get("base_accumulative_counts", 1):
            changes.append(
                Scaled(
                    ("auto_scale_lr", "base_accumulative_counts"),
                    options.get("base_accumulative_counts", 1),
                    accumulated,
                )
            )
    return changes


def base_batch(options: Mapping[str, Any] | None) -> int | None:
    """Images per update that a config is for, by its ``auto_scale_lr``; None where nothing is to be scaled.

    Raises:
        KeyError: ``base_batch_size`` is missing, or a key nothing reads.
        ValueError: It is no positive number.
    """
    check_keys(options, _KEYS, "auto_scale_lr")
    if not options or not options.get("enable", False):
        return None
    if "base_batch_size" not in options:
        raise KeyError("auto_scale_lr.base_batch_size is missing: the batch size that the learning rate is for")
    for key in ("base_batch_size", "base_accumulative_counts"):
        value = options.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"auto_scale_lr.{key}: a positive integer was expected, got {value!r}")
    return options["base_batch_size"]


def expected_world_size(launcher: str) -> int:
    """Number of processes of the run that this process is starting, before they know of each other."""
    if is_distributed():
        return get_world_size()
    if launcher == "none":
        return 1
    environment = dict(os.environ)
    translate_environment(launcher, environment)
    return int(environment["WORLD_SIZE"])


def other_batch(cfg: Any, saved_cfg: str) -> str | None:
    """What a scaled run that is resumed with another batch must know; None where the batch is the same.

    Args:
        cfg: Config of the run, scaled.
        saved_cfg: That of the run which wrote the checkpoint, as text.
    """
    now = base_batch(cfg.get("auto_scale_lr"))
    options = loads(saved_cfg).get("auto_scale_lr") if now is not None and saved_cfg else None
    before = base_batch(options)
    if now is None or before is None or now == before:
        return None
    return (
        f"auto_scale_lr: {before} images per update before, {now} now; the learning rate stays that of {before}, and "
        f"what is counted in iterations is for {now}"
    )


def _optimizers(wrapper: Any, path: Path = ("optim_wrapper",)) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Each dict with the config of an optimizer, with its path."""
    if not isinstance(wrapper, Mapping):
        return
    if isinstance(wrapper.get("optimizer"), Mapping):
        yield path, wrapper
    for key, value in wrapper.items():
        if key != "optimizer":
            yield from _optimizers(value, (*path, key))


def _images_per_iteration(loader: Any, world_size: int) -> int:
    """Of all processes."""
    if not isinstance(loader, Mapping):
        return loader.batch_sampler.batch_size * world_size
    batches = loader.get("batch_sampler")
    own = batches.get("batch_size") if isinstance(batches, Mapping) else None
    if own is None and "total_batch_size" in loader:
        return loader["total_batch_size"]
    return (own or loader.get("batch_size", 1)) * world_size


def _rates(cfg: Any, wrappers: Mapping[Path, Mapping[str, Any]], factor: float) -> Iterator[Scaled]:
    for path, wrapper in wrappers.items():
        optimizer = wrapper["optimizer"]
        if "lr" not in optimizer:
            place = ".".join(map(str, path))
            raise KeyError(f"{place}.optimizer.lr is missing: auto_scale_lr needs to know what to scale")
        yield Scaled((*path, "optimizer", "lr"), optimizer["lr"], optimizer["lr"] * factor)
        rules = wrapper.get("paramwise_cfg") or {}
        for kind in ("custom_keys", "overrides"):
            for name, settings in (rules.get(kind) or {}).items():
                if isinstance(settings, Mapping) and settings.get("lr") is not None:
                    value = settings["lr"]
                    yield Scaled((*path, "paramwise_cfg", kind, name, "lr"), value, value * factor)
    for path, scheduler in _schedulers(cfg.get("param_scheduler")):
        if _name(scheduler).endswith("LR"):
            yield from _scaled(path, scheduler, _RATES, factor)
    for path, hook in _hooks(cfg):
        yield from _scaled(path, hook, ("lr",), factor)


def _scaled(path: Path, cfg: Mapping[str, Any], keys: Sequence[str], factor: float) -> Iterator[Scaled]:
    for key in keys:
        if cfg.get(key):
            yield Scaled((*path, key), cfg[key], cfg[key] * factor)


def _lengths(cfg: Any, factor: float) -> Iterator[Scaled]:
    yield from _steps(("train_cfg",), cfg["train_cfg"], _LOOP_STEPS, factor)
    for path, scheduler in _schedulers(cfg.get("param_scheduler")):
        own = "multiplier" in scheduler or _name(scheduler).startswith("Warmup")
        if scheduler.get("by_epoch", not own):
            continue
        yield from _steps(path, scheduler, _SCHEDULE_STEPS, factor)
        if _name(scheduler).startswith("Exponential"):
            gamma = scheduler["gamma"]  # per step, of which there are fewer
            yield Scaled((*path, "gamma"), gamma, gamma**factor)
        for inner, curve in _curves(scheduler, path):
            yield from _steps(inner, curve, _SCHEDULE_STEPS, factor)
    for path, hook in _hooks(cfg):
        keys: tuple[str, ...] = ("begin_iter",)
        if hook.get("by_epoch") is False or (_name(hook) == "SWAHook" and hook.get("begin_iter")):
            keys += _HOOK_STEPS
        yield from _steps(path, hook, keys, factor)


def _hooks(cfg: Any) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every hook's config with its path."""
    named = [(("default_hooks", name), hook) for name, hook in (cfg.get("default_hooks") or {}).items()]
    listed = [(("custom_hooks", index), hook) for index, hook in enumerate(cfg.get("custom_hooks") or ())]
    for path, hook in (*named, *listed):
        if isinstance(hook, Mapping):
            yield path, hook


def _schedulers(cfg: Any, path: Path = ("param_scheduler",)) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every scheduler's config with its path: one, a list, or either for each of several optimizers."""
    if isinstance(cfg, Mapping) and "type" in cfg:
        yield path, cfg
    elif isinstance(cfg, Mapping):
        for name, group in cfg.items():
            yield from _schedulers(group, (*path, name))
    elif isinstance(cfg, Sequence) and not isinstance(cfg, str):
        for index, one in enumerate(cfg):
            yield from _schedulers(one, (*path, index))


def _name(cfg: Mapping[str, Any]) -> str:
    kind = cfg.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__


def _curves(cfg: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Every curve inside ``cfg``."""
    for key in ("multiplier", "multipliers"):
        for inner, curve in _schedulers(cfg.get(key), (*path, key)):
            yield inner, curve
            yield from _curves(curve, inner)


def _steps(path: Path, cfg: Mapping[str, Any], keys: Sequence[str], factor: float) -> Iterator[Scaled]:
    for key in keys:
        before = cfg.get(key)
        after = _divided(before, factor)
        if after != before:
            yield Scaled((*path, key), before, after)


def _divided(value: Any, factor: float) -> Any:
    """Numbers of steps, of which none becomes 0; what says 'never' (0, -1, None) stays, and so do fractions."""
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(one, factor) for one in value)
    if type(value) is not int or value < 1:
        return value
    return max(1, round(value / factor))


def _with(container: Any, path: Path, value: Any) -> Any:
    """A copy of ``container`` with ``value`` at ``path``; what lies beside the path is shared."""
    copied: Any = list(container) if isinstance(container, tuple) else container.copy()
    head, *rest = path
    copied[head] = _with(container[head], tuple(rest), value) if rest else value
    return type(container)(copied) if isinstance(container, tuple) else copied
