"""When checkpoints are written, which is the best, and which are deleted."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from mmengine.runner import BaseLoop

from detkit.engine.checkpoint import write_text
from detkit.engine.hooks.hook import Hook
from detkit.engine.metric_files import scalars
from detkit.registry import HOOKS, nearest

__all__ = ["CheckpointHook"]

_LESS = ("loss", "error", "err")


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Writes ``epoch_N.pth`` and names it in ``last_checkpoint``; keeps the best by a metric.

    A new file is complete on disk before an older one is deleted: killed at any moment, the run can go on.
    A run that starts anew puts the checkpoints of an earlier one in the same folder aside, in
    ``previous_<time>``, where <time> is that of the earlier run's last checkpoint.

    Args:
        interval: Epochs (or iterations) between checkpoints; None or -1 for none but the last.
        by_epoch: Count epochs, else iterations.
        save_optimizer: Whether the files can be resumed from.
        save_param_scheduler: The same for schedules.
        max_keep_ckpts: How many to keep, the best aside; None or -1 for all.
        save_last: Write one when training ends, whatever ``interval`` is.
        save_best: A metric such as ``coco/bbox_mAP``, several, or ``auto`` for the evaluator's first.
        rule: ``greater`` or ``less``, or one per metric; by default ``less`` for names with ``loss`` or ``err``.
        filename_tmpl: Name of a file, with one ``{}`` for the number; it must end in ``.pth``.
        save_begin: First epoch (or iteration) at which ``interval`` counts.

    Raises:
        ValueError: A count, rule or file name that cannot be.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int | None = None,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        max_keep_ckpts: int | None = None,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = None,
        rule: str | Sequence[str] | None = None,
        filename_tmpl: str | None = None,
        save_begin: int = 0,
    ) -> None:
        self.interval = _count("interval", interval)
        self.by_epoch = by_epoch
        self.save_optimizer = save_optimizer
        self.save_param_scheduler = save_param_scheduler
        self.max_keep_ckpts = _count("max_keep_ckpts", max_keep_ckpts)
        self.save_last = save_last
        self.save_best = [save_best] if isinstance(save_best, str) else list(save_best or [])
        self.rules = self._rules(rule)
        self.filename_tmpl = filename_tmpl or ("epoch_{}.pth" if by_epoch else "iter_{}.pth")
        if self.filename_tmpl.count("{}") != 1 or not self.filename_tmpl.endswith("{}.pth"):
            raise ValueError(
                f"CheckpointHook: filename_tmpl must end in '{{}}.pth' with one '{{}}', got {filename_tmpl!r}; "
                "resuming finds the newest checkpoint by its number"
            )
        self.save_begin = save_begin

    def before_train(self, runner: Any) -> None:
        """Sweep up what a killed run left: files half written, and old ones that it was about to delete.

        A new run does not go on among the checkpoints of an earlier one.
        """
        for leftover in Path(runner.work_dir).glob(".*.pth.*.tmp"):
            leftover.unlink()
        if runner.iter == 0:
            _put_aside(runner)
        self._prune(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Save at the interval and at the end."""
        if not self.by_epoch:
            return
        due = self.interval and self.every_n_epochs(runner, self.interval, self.save_begin)
        if due or (self.save_last and self.is_last_train_epoch(runner)):
            self._save(runner, runner.epoch + 1, {"epoch": runner.epoch + 1, "iter": runner.iter})

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save at the interval and at the end."""
        if self.by_epoch:
            return
        due = self.interval and self.every_n_train_iters(runner, self.interval, self.save_begin)
        if due or (self.save_last and self.is_last_train_iter(runner)):
            self._save(runner, runner.iter + 1, {"epoch": runner.epoch, "iter": runner.iter + 1})

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Save the weights if a metric is better than ever before."""
        # Validation by itself judges weights that a checkpoint holds already.
        if not self.save_best or not metrics or not isinstance(runner._train_loop, BaseLoop):
            return
        numbers = scalars(metrics)
        for key in [next(iter(numbers))] if self.save_best == ["auto"] else self.save_best:
            if key not in numbers:
                close = " or ".join(map(repr, nearest(key, numbers, count=3)))
                raise KeyError(
                    f"default_hooks.checkpoint.save_best: the evaluator gives no {key!r}; did you mean {close}?"
                )
            self._save_if_best(runner, key, numbers[key])

    def _save_if_best(self, runner: Any, key: str, score: float) -> None:
        hub = runner.message_hub
        best: dict[str, dict[str, Any]] = dict(hub.get_info("best") or {})
        previous = best.get(key)
        # A NaN or an infinity says that the metric failed, not that the model is good.
        if not math.isfinite(score) or (previous and not self._better(key, score, previous["score"])):
            return
        number = runner.epoch if self.by_epoch else runner.iter
        name = f"best_{key}_{self.filename_tmpl.format(number)}".replace("/", "_")
        best[key] = {"score": score, "file": name, "epoch": runner.epoch, "iter": runner.iter}
        hub.update_info("best", best)
        runner.save_checkpoint(
            runner.work_dir,
            name,
            save_optimizer=False,
            save_param_scheduler=False,
            meta={"epoch": runner.epoch, "iter": runner.iter, "metric": {key: score}},
        )
        if previous and previous["file"] != name:
            Path(runner.work_dir, previous["file"]).unlink(missing_ok=True)
        runner.logger.info("best %s so far: %.4f, saved as %s", key, score, name)

    def _better(self, key: str, score: float, best: float) -> bool:
        rule = self.rules.get(key) or ("less" if any(word in key.lower() for word in _LESS) else "greater")
        return score < best if rule == "less" else score > best

    def _save(self, runner: Any, number: int, meta: dict[str, int]) -> None:
        name = self.filename_tmpl.format(number)
        hub = runner.message_hub
        kept = [*(kept for kept in hub.get_info("kept_checkpoints") or [] if kept != name), name]
        # The file lists also what is about to be deleted, so that a resumed run deletes it if this one cannot.
        hub.update_info("kept_checkpoints", kept)
        runner.save_checkpoint(
            runner.work_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
        )
        write_text(Path(runner.work_dir, "last_checkpoint"), name)
        self._prune(runner)

    def _prune(self, runner: Any) -> None:
        kept = runner.message_hub.get_info("kept_checkpoints") or []
        if self.max_keep_ckpts and len(kept) > self.max_keep_ckpts:
            for old in kept[: -self.max_keep_ckpts]:
                Path(runner.work_dir, old).unlink(missing_ok=True)
            runner.message_hub.update_info("kept_checkpoints", kept[-self.max_keep_ckpts :])

    def _rules(self, rule: str | Sequence[str] | None) -> dict[str, str]:
        rules = [rule] * max(len(self.save_best), 1) if isinstance(rule, str) else list(rule or [])
        wrong = [name for name in rules if name not in ("greater", "less")]
        if wrong or (rules and len(rules) != max(len(self.save_best), 1)):
            raise ValueError(f"CheckpointHook: rule must be 'greater' or 'less', or one per save_best, got {rule!r}")
        return dict(zip(self.save_best, rules, strict=False)) if rules else {}


def _put_aside(runner: Any) -> None:
    pointer = Path(runner.work_dir, "last_checkpoint")
    if not pointer.exists():
        return
    written = time.strftime("%Y%m%d_%H%M%S", time.localtime(pointer.stat().st_mtime))
    names = chain([f"previous_{written}"], (f"previous_{written}_{number}" for number in count(1)))
    folder = next(path for path in map(pointer.with_name, names) if not path.exists())
    folder.mkdir()
    # The pointer goes last: a run killed in between leaves it, and the next one moves the rest.
    for path in [*sorted(pointer.parent.glob("*.pth")), pointer]:
        path.rename(folder / path.name)
    runner.logger.warning("checkpoints of an earlier run were moved to %s", folder)


def _count(name: str, value: int | None) -> int | None:
    if value is None or value == -1:
        return None
    if value < 1:
        raise ValueError(f"CheckpointHook: {name} must be at least 1, or None, got {value}")
    return value
