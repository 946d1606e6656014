"""How a line in the terminal looks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.runner import IterBasedTrainLoop

from detkit.engine.reporting.console import duration
from detkit.events import EventStorage, History
from detkit.registry import LOG_PROCESSORS, check_keys

__all__ = ["LogProcessor"]

_STATISTICS: dict[str, Any] = {"mean": np.mean, "median": np.median, "max": np.max, "min": np.min}
_PLACED = {"loss", "lr", "time", "data_time", "hook_time", "memory"}


@LOG_PROCESSORS.register_module()
class LogProcessor:
    """Makes the lines of ``LoggerHook``; arguments are those of mmengine's class of this name.

    Args:
        window_size: Values of which the terminal shows the median; one outlier does not show.
        by_epoch: Has no effect: whether lines count epochs or iterations is what the training loop does.
        custom_cfg: Further values, or others in place of the usual ones: ``data_src`` names a scalar,
            ``method_name`` is ``mean``, ``median``, ``max``, ``min`` or ``current``, over the last ``window_size``
            values, those of the ``epoch``, or all of the run (``global``, for the mean only); ``log_name`` is the
            name it gets, that of the scalar by default.
        num_digits: Significant digits in the terminal.
        log_with_hierarchy: Put ``train/`` before the names that the visualizer's backends get.
        mean_pattern: Only names that match this regular expression are smoothed in the terminal; by default all,
            save those that were noted as not to be.

    Raises:
        ValueError: A window or number of digits that is not positive, or a ``custom_cfg`` that cannot be.
    """

    def __init__(
        self,
        window_size: int = 10,
        by_epoch: bool = True,
        custom_cfg: Sequence[Mapping[str, Any]] | None = None,
        num_digits: int = 4,
        log_with_hierarchy: bool = False,
        mean_pattern: str | None = None,
    ) -> None:
        for name, number in (("window_size", window_size), ("num_digits", num_digits)):
            if number < 1:
                raise ValueError(f"LogProcessor: {name} must be at least 1, got {number}")
        self.window_size = window_size
        self.custom_cfg = [_checked(entry, f"custom_cfg.{index}") for index, entry in enumerate(custom_cfg or ())]
        names = [entry.get("log_name", entry["data_src"]) for entry in self.custom_cfg]
        if len(set(names)) < len(names):
            raise ValueError(f"LogProcessor: custom_cfg gives a name twice: {names}")
        self.num_digits = num_digits
        self.log_with_hierarchy = log_with_hierarchy
        self._smoothed = re.compile(mean_pattern or "")

    def smoothed(self, name: str, history: History) -> float:
        """What the terminal shows of a scalar."""
        if history.smoothing and self._smoothed.match(name):
            return history.median(self.window_size)
        return history.latest()[0]

    def custom(self, events: EventStorage, in_epoch: int) -> dict[str, float]:
        """The values that ``custom_cfg`` asks for.

        Args:
            events: Of the run.
            in_epoch: Iterations of this epoch that are done.
        """
        values = {}
        for entry in self.custom_cfg:
            history = events.history(entry["data_src"])
            window = entry.get("window_size", self.window_size)
            method = entry.get("method_name", "mean")
            if method == "current":
                value = history.latest()[0]
            elif window == "global":
                value = history.global_mean()
            else:
                value = float(_STATISTICS[method](history.values(in_epoch if window == "epoch" else window)))
            values[entry.get("log_name", entry["data_src"])] = value
        return values

    def progress(self, runner: Any, epoch: int, step: int, in_epoch: int | None = None) -> str:
        """``epoch 1/12  iter 50/7330`` or ``iter 50/90000``."""
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            return f"iter {step}/{runner.max_iters}"
        iteration = "" if in_epoch is None else f"  iter {in_epoch}/{len(runner.train_dataloader)}"
        return f"epoch {epoch}/{runner.max_epochs}{iteration}"

    def values(self, values: Mapping[str, float], eta: float | None) -> str:
        """``loss 0.812 (cls 0.5 bbox 0.312)  lr 0.02  eta 1:23:45  time 0.25`` and all else that was noted."""
        digits = self.num_digits
        others = [name for name in values if name not in _PLACED]
        losses = [name for name in others if "loss" in name and name != "loss_scale" and not name.startswith("[")]
        parts = [f"{name.removeprefix('loss_')} {values[name]:.{digits}g}" for name in losses]
        shown = [f"loss {values['loss']:.{digits}g}"] if "loss" in values else []
        if parts:
            shown.append(f"({' '.join(parts)})")
        shown = [" ".join(shown)] if shown else []
        if "lr" in values:
            shown.append(f"lr {values['lr']:.{digits}g}")
        if eta is not None:
            shown.append(f"eta {duration(eta)}")
        shown += [f"{name} {values[name]:.{digits}g}" for name in ("time", "data_time") if name in values]
        if "memory" in values:
            shown.append(f"memory {values['memory']:.0f}")
        rest = (name for name in others if name not in losses)
        return "  ".join([*shown, *(f"{name} {values[name]:.{digits}g}" for name in rest)])


def _checked(entry: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    check_keys(entry, {"data_src", "method_name", "window_size", "log_name"}, path)
    if "data_src" not in entry:
        raise ValueError(f"LogProcessor: {path}.data_src is missing: the scalar that it is about")
    method, window = entry.get("method_name", "mean"), entry.get("window_size", 1)
    if method not in (*_STATISTICS, "current"):
        raise ValueError(f"LogProcessor: {path}.method_name must be one of {[*_STATISTICS, 'current']}, got {method!r}")
    if not (window in ("epoch", "global") or (isinstance(window, int) and window > 0)):
        raise ValueError(f"LogProcessor: {path}.window_size must be positive, 'epoch' or 'global', got {window!r}")
    if window == "global" and method not in ("mean", "current"):
        raise ValueError(f"LogProcessor: {path}: of the whole run only the mean is kept, not the {method}")
    return entry
