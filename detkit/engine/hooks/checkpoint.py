"""When checkpoints are written, which is the best, and which are deleted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.runner import BaseLoop, IterBasedTrainLoop

from detkit.checkpoints.files import link_file, remove_partial_files, write_text
from detkit.checkpoints.work_dir import publish, put_aside
from detkit.engine.hooks.best_metric import BestMetric
from detkit.engine.hooks.hook import Hook
from detkit.engine.reporting.metric_files import scalars
from detkit.registry import HOOKS

__all__ = ["CheckpointHook", "checkpoint_folder", "save_between"]


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Writes ``epoch_N.pth`` and names it in ``last_checkpoint``; keeps the best by a metric.

    A new file is complete on disk before an older one is deleted: killed at any moment, the run can go on.
    A run that starts anew puts the checkpoints of an earlier one in the same folder aside, in
    ``previous_<time>``, where <time> is that of the earlier run's last checkpoint. What is the best so far, and what
    is to be kept, is in each checkpoint: a resumed run goes on with both.

    Args:
        interval: Epochs (or iterations) between checkpoints; None or -1 for none but the last.
        by_epoch: Count epochs, else iterations.
        save_optimizer: Whether the files can be resumed from.
        save_param_scheduler: The same for schedules.
        out_dir: Write to ``<out_dir>/<name of the work directory>``, and resume from there; by default the work
            directory.
        max_keep_ckpts: How many to keep, the best and ``final_name`` aside; None or -1 for all.
        save_last: Write one when training ends, whatever ``interval`` is.
        save_best: A metric such as ``coco/bbox_mAP``, several, or ``auto`` for the evaluator's first. The best is a
            file of weights: it is never resumed from.
        rule: ``greater`` or ``less``, or one per metric; by default by ``less_keys`` and ``greater_keys``, then
            ``less`` for names with ``loss`` or ``err``, and else ``greater``.
        greater_keys: Parts of the names of metrics that should be great.
        less_keys: Parts of the names of metrics that should be small.
        filename_tmpl: Name of a file, with one ``{}`` or ``{:07d}`` for the number, ending in ``.pth``.
        backend_args: Must be None: files are written to a file system, where a rename is atomic.
        published_keys: Parts of a checkpoint, such as ``state_dict``, that are written at the end, from the last and
            from the best, to ``<name>-<start of its SHA-256>.pth``; None for no such files.
        save_begin: First epoch (or iteration) at which ``interval`` counts.
        final_name: Name, such as ``model_final.pth``, that the last checkpoint has in any case; it is not written
            twice where ``interval`` wants it too.
        strict: Whether it is an error that the evaluator does not give a metric of ``save_best``; else it is warned
            of once.

    Raises:
        ValueError: A count, rule or file name that cannot be, or ``backend_args``.
    """

    priority = "VERY_LOW"

    def __init__(
        self,
        interval: int | None = None,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        out_dir: str | None = None,
        max_keep_ckpts: int | None = None,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = None,
        rule: str | Sequence[str] | None = None,
        greater_keys: Sequence[str] = (),
        less_keys: Sequence[str] = (),
        filename_tmpl: str | None = None,
        backend_args: None = None,
        published_keys: str | Sequence[str] | None = None,
        save_begin: int = 0,
        final_name: str | None = None,
        strict: bool = False,
    ) -> None:
        self.interval = _count("interval", interval)
        self.by_epoch = by_epoch
        self.save_optimizer = save_optimizer
        self.save_param_scheduler = save_param_scheduler
        self.max_keep_ckpts = _count("max_keep_ckpts", max_keep_ckpts)
        self.save_last = save_last
        self.filename_tmpl = filename_tmpl or ("epoch_{}.pth" if by_epoch else "iter_{}.pth")
        self.published_keys = [published_keys] if isinstance(published_keys, str) else list(published_keys or [])
        self.save_begin = save_begin
        self.final_name = final_name
        self._out_dir = out_dir
        self._best = BestMetric(save_best, rule, greater_keys, less_keys, strict)
        self._kept: list[str] = []
        self._saved_at: int | None = None
        self._max_iters = 0
        self._check_names()
        if backend_args is not None:
            raise ValueError(
                f"CheckpointHook: backend_args must be None, got {backend_args!r}; checkpoints are written to a file "
                "system, as object stores cannot rename a finished file into place: mount one, or copy from there"
            )

    def _check_names(self) -> None:
        if re.fullmatch(r"[^{}/]*\{(:0?\d*d?)?\}\.pth", self.filename_tmpl) is None:
            raise ValueError(
                f"CheckpointHook: filename_tmpl must end in '{{}}.pth' with one '{{}}', got {self.filename_tmpl!r}; "
                "resuming finds the newest checkpoint by its number"
            )
        if self.final_name is not None and not re.fullmatch(r"(?!best_|\.)[^/]+\.pth", self.final_name):
            raise ValueError(
                f"CheckpointHook: final_name must be a file name that ends in .pth and does not begin with 'best_', "
                f"got {self.final_name!r}"
            )
        if self._out_dir is not None and "://" in str(self._out_dir):
            raise ValueError(f"CheckpointHook: out_dir must be a folder, got {self._out_dir!r}")

    @property
    def best(self) -> dict[str, dict[str, Any]]:
        """Metric -> ``score``, ``file``, ``epoch`` and ``iter`` of the best so far."""
        return self._best.records

    def folder(self, runner: Any) -> Path:
        """Where the checkpoints of a run are."""
        work_dir = Path(runner.work_dir)
        return Path(self._out_dir).expanduser() / work_dir.resolve().name if self._out_dir else work_dir

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and the files that are kept."""
        return {"best": self.best, "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take both up."""
        self._best.records = {key: dict(record) for key, record in state["best"].items()}
        self._kept = list(state["kept"])

    def keep(self, name: str) -> None:
        """Count a checkpoint among those of which ``max_keep_ckpts`` are kept; called before it is written."""
        # A file lists also what is about to be deleted, so that a resumed run deletes it if this one cannot.
        self._kept = [*(kept for kept in self._kept if kept != name), name]

    def before_train(self, runner: Any) -> None:
        """Sweep up what a killed run left: files half written, and old ones that it was about to delete.

        A new run does not go on among the checkpoints of an earlier one.
        """
        self._max_iters = runner.max_iters
        if not any(getattr(hook, "adds_metrics", False) for hook in runner.hooks):
            self._best.check(runner.val_loop, runner.logger.warning)
        if self.by_epoch and self.interval and isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.logger.warning(
                "default_hooks.checkpoint: interval=%d counts epochs, and all of an IterBasedTrainLoop is one: nothing "
                "is saved before the end; set by_epoch=False and an interval in iterations",
                self.interval,
            )
        if runner.rank == 0:
            folder = self.folder(runner)
            folder.mkdir(parents=True, exist_ok=True)
            remove_partial_files(folder)
            aside = put_aside(folder) if runner.iter == 0 else None
            if aside is not None:
                runner.logger.warning("checkpoints of an earlier run were moved to %s", aside)
        self._prune(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Save at the interval and at the end."""
        if self.by_epoch:
            due = self.interval and self.every_n_epochs(runner, self.interval, self.save_begin)
            last = self.is_last_train_epoch(runner)
            name = self.filename_tmpl.format(runner.epoch + 1)
            self._save(runner, name, {"epoch": runner.epoch + 1, "iter": runner.iter}, bool(due), last)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save at the interval and at the end."""
        if self.by_epoch:
            return
        done = runner.iter + 1
        last = done == self._max_iters
        since = done - self.save_begin
        due = self.interval is not None and since >= 0 and since % self.interval == 0
        if due or last:
            self._save(runner, self.filename_tmpl.format(done), {"epoch": runner.epoch, "iter": done}, due, last)

    def after_train(self, runner: Any) -> None:
        """Save if the run was stopped before its end, as by early stopping; write what is to be published."""
        if not runner.train_completed:  # this stage is also reached after an error
            return
        if self._saved_at != runner.iter:
            name = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
            if self.by_epoch and _inside_epoch(runner):  # else it would replace the one of the last epoch's end
                name = f"iter_{runner.iter}.pth"
            self._save(runner, name, {"epoch": runner.epoch, "iter": runner.iter}, False, True)
        if self.published_keys and runner.rank == 0:
            folder = self.folder(runner)
            files = {record["file"] for record in self.best.values()}
            pointer = folder / "last_checkpoint"
            if pointer.is_file():
                files.add(pointer.read_text())
            for name in sorted(files):
                runner.logger.info("published %s", publish(folder / name, self.published_keys))

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, Any] | None = None) -> None:
        """Save the weights if a metric is better than ever before."""
        # Validation by itself judges weights that a checkpoint holds already.
        if not self._best.keys or not metrics or not isinstance(runner._train_loop, BaseLoop):
            return
        improved = self._best.improved(scalars(metrics), runner.logger.warning)
        if not improved:
            return
        done = {"epoch": runner.epoch, "iter": runner.iter}
        numbered = self.filename_tmpl.format(runner.epoch if self.by_epoch else runner.iter)
        files = {key: f"best_{key}_{numbered}".replace("/", "_") for key in improved}
        replaced = {self.best[key]["file"] for key in improved if key in self.best} - set(files.values())
        for key, score in improved.items():
            self.best[key] = {"score": score, "file": files[key], **done}
        first, *others = files.values()
        folder = self.folder(runner)
        runner.save_checkpoint(
            folder, first, save_optimizer=False, save_param_scheduler=False, meta={**done, "metric": improved}
        )
        for key, score in improved.items():
            runner.logger.info("best %s so far: %.4f, saved as %s", key, score, files[key])
        if runner.rank == 0:
            for name in others:  # the same weights are not written twice
                link_file(folder / first, folder / name)
            for name in replaced:
                (folder / name).unlink(missing_ok=True)

    def _save(self, runner: Any, numbered: str, meta: dict[str, int], due: bool, last: bool) -> None:
        final = self.final_name if last and self.save_last else None
        if not due and not (last and self.save_last):
            return
        name = numbered if due or final is None else final
        if name == numbered:
            self.keep(name)
        folder = self.folder(runner)
        runner.save_checkpoint(
            folder,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
        )
        self._saved_at = meta["iter"]
        if runner.rank == 0:
            if final is not None and final != name:
                link_file(folder / name, folder / final)
            write_text(folder / "last_checkpoint", final or name)
        self._prune(runner)

    def _prune(self, runner: Any) -> None:
        if self.max_keep_ckpts and len(self._kept) > self.max_keep_ckpts:
            if runner.rank == 0:
                for old in self._kept[: -self.max_keep_ckpts]:
                    (self.folder(runner) / old).unlink(missing_ok=True)
            self._kept = self._kept[-self.max_keep_ckpts :]


def checkpoint_folder(runner: Any) -> Path:
    """Where the checkpoints of ``runner`` are: where its CheckpointHook writes them, else its work directory."""
    hook = _hook_of(runner)
    return hook.folder(runner) if hook else Path(runner.work_dir)


def save_between(runner: Any, name: str, meta: Mapping[str, int]) -> None:
    """Write a checkpoint that no interval asked for, from which the run is to be resumed."""
    hook = _hook_of(runner)
    if hook is not None:
        hook.keep(name)
    folder = checkpoint_folder(runner)
    runner.save_checkpoint(folder, name, meta=meta)
    if runner.rank == 0:
        write_text(folder / "last_checkpoint", name)


def _inside_epoch(runner: Any) -> bool:
    stream = getattr(runner.train_loop, "stream", None)  # a loop that is not detkit's has none
    return stream is not None and stream.position.batch > 0


def _hook_of(runner: Any) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _count(name: str, value: int | None) -> int | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"CheckpointHook: {name} must be at least 1 and whole, or None, got {value!r}")
    return value
