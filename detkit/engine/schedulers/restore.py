"""What a checkpoint keeps of schedules, and how a run with another config takes them up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from mmengine.logging import print_log

__all__ = ["restore_schedulers", "schedulers_state"]

# What a scheduler has done so far; all else is what it was configured to do.
_PROGRESS = ("last_step", "_global_step", "_last_value", "base_values")


def schedulers_state(schedulers: Any) -> Any:
    """The state of each scheduler with the name of its class; lists and dicts of lists keep their form."""
    return _map(schedulers, lambda one: {"type": type(one).__name__, **_settings(one)})


def restore_schedulers(schedulers: Any, saved: Any, path: str, logger: logging.Logger | None = None) -> None:
    """Give the schedulers their progress; what the config says of them now counts, with a warning where it changed.

    Args:
        schedulers: Of the run; its optimizer is restored already.
        saved: ``param_schedulers`` of a checkpoint.
        path: Its file, for messages.
        logger: Gets the warnings; by default that of the run in this process.

    Raises:
        ValueError: Another number of schedulers, or another type.
    """
    now, before = _flat(schedulers), _flat(saved)
    names = [type(scheduler).__name__ for scheduler in now]
    if len(now) != len(before):
        raise ValueError(
            f"{path}: has the state of {len(before)} param_scheduler entries, the config has {len(now)} "
            f"({', '.join(names)}); resume with the schedule the run was started with"
        )
    for index, (scheduler, state) in enumerate(zip(now, before, strict=True)):
        own = _settings(scheduler)
        kind = state.get("type", names[index])  # files of detkit 0.1 name no types
        if kind != names[index] or own.keys() != state.keys() - {"type"}:
            change = f"was a {kind} and is now a {names[index]}"
            if kind == names[index]:
                change = f"is now a {kind}, whose state has other entries"
            raise ValueError(
                f"{path}: param_scheduler.{index} {change}; resume with the schedule the run was started with"
            )
        for key in sorted(own.keys() - set(_PROGRESS)):
            if own[key] != state[key]:
                change = f"{key} was {state[key]} before, and is {own[key]} now"
                print_log(f"param_scheduler.{index} ({names[index]}): {change}", logger or "current", logging.WARNING)
        scheduler.load_state_dict({key: state[key] for key in own if key in _PROGRESS})
        if "_global_step" in own and state["end"] == state["_global_step"]:
            # mmengine's schedulers take no step at their end; in a run that goes on it is a step like any other.
            scheduler._global_step -= 1
            scheduler.step()


def _settings(scheduler: Any) -> dict[str, Any]:
    """Without the functions that some schedulers keep among their settings."""
    return {key: value for key, value in scheduler.state_dict().items() if not callable(value)}


def _map(schedulers: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(schedulers, dict):
        return {name: [function(one) for one in group] for name, group in schedulers.items()}
    return [function(one) for one in schedulers]


def _flat(schedulers: Any) -> list[Any]:
    if isinstance(schedulers, dict):
        return [one for name in sorted(schedulers) for one in schedulers[name]]
    return list(schedulers or ())
