"""Guarding the weights against a loss that is not finite, on all processes alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop
from torch import Tensor, distributed

from detkit.checkpoints import save_checkpoint_file
from detkit.engine.diagnosis.batch_contents import image_names, impossible_boxes
from detkit.engine.diagnosis.bundle import bundle_of
from detkit.engine.distributed import all_gather, is_distributed
from detkit.engine.hooks.ema import EMAHook
from detkit.engine.hooks.hook import Hook
from detkit.engine.hooks.logger import LoggerHook
from detkit.engine.optim.skipping import either
from detkit.engine.parallel.inner_model import inner_model
from detkit.registry import HOOKS

__all__ = ["CheckInvalidLossHook"]

_ACTIONS = ("raise", "skip", "stop")
_NAMED_RANKS = 8


class _Step(NamedTuple):
    iteration: int  # iterations done with it
    bad: Tensor | bool  # (), where the loss is
    outputs: Mapping[str, Any]


class _Account(NamedTuple):
    """What one process has to say of a step."""

    losses: dict[str, float]
    images: list[str]
    boxes: list[str]  # that no loss can be finite with
    problem: str  # why the images are not known
    file: str | None  # of the bundle


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Keeps a loss that is not finite away from the weights, and says which images it came from.

    Each loss is looked at on the device, and a step whose loss is not finite on any process is left out on all of them:
    weights and the state of the optimizer stay as they were. The host reads what was found once per ``interval``, and
    before each validation and checkpoint. With several processes the flag is reduced over them at each step.

    A bundle in ``work_dir/invalid_loss_iter_<N>/`` holds what ``tools/replay.py`` needs to repeat the step and to find
    the image. The running statistics of norms that such a step has spoilt are taken back to those of the last look.

    Args:
        interval: Iterations between two looks; each waits for the device once. None looks where ``LoggerHook`` reads.
        action: ``'raise'`` ends the run with a FloatingPointError; no step is made after the bad one. ``'stop'`` ends
            it without an error, as early stopping does. ``'skip'`` goes on, and warns.
        max_skipped: Steps in a row that ``'skip'`` leaves out before it raises after all.
        bundle: Whether to write bundles; of skipped steps, three in a run at most.

    Raises:
        ValueError: An interval or ``max_skipped`` that is not positive, or another action.
    """

    priority = "ABOVE_NORMAL"  # before LoggerHook writes the numbers of the bad step

    def __init__(
        self, interval: int | None = None, action: str = "raise", max_skipped: int = 10, bundle: bool = True
    ) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f"CheckInvalidLossHook: interval must be at least 1 or None, got {interval}")
        if action not in _ACTIONS:
            raise ValueError(f"CheckInvalidLossHook: action is one of {', '.join(_ACTIONS)}, got {action!r}")
        if max_skipped < 1:
            raise ValueError(f"CheckInvalidLossHook: max_skipped must be at least 1, got {max_skipped}")
        self.interval = interval
        self.action = action
        self.max_skipped = max_skipped
        self.bundle = bundle
        self._steps: list[_Step] = []
        self._bad: Tensor | bool | None = None  # of the step that is being made
        self._was_bad: Tensor | bool = False  # with 'raise' and 'stop': of any step so far
        self._skipped = 0  # in a row
        self._good_until = 0  # iterations done that are known to be good
        self._bundles = 0
        self._buffers: tuple[int, dict[str, Tensor]] = (0, {})  # iterations done, and the buffers then
        self._inner_interval = 50  # where interval is None
        self._epoch_length = 0
        self._several = False  # processes
        self._active = True

    def before_train(self, runner: Any) -> None:
        """Take up the guard of the optimizer wrapper; of several such hooks the last one does."""
        others = [hook for hook in runner.hooks if isinstance(hook, CheckInvalidLossHook)]
        self._active = others[-1] is self
        if not self._active:
            return
        if self.interval is None:
            loggers = [hook for hook in runner.hooks if isinstance(hook, LoggerHook)]
            self._inner_interval = loggers[-1].interval if loggers else self._inner_interval
        self._several = is_distributed()
        for wrapper in _wrappers(runner):
            wrapper.guard = self._guard
        self._steps, self._bad, self._was_bad, self._skipped = [], None, False, 0
        self._good_until = runner.iter
        self._keep_buffers(runner, runner.iter)

    def before_train_epoch(self, runner: Any) -> None:
        """Note where the epoch ends: ``LoggerHook`` may read there."""
        endless = isinstance(runner.train_loop, IterBasedTrainLoop)
        self._epoch_length = 0 if endless else len(runner.train_dataloader)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take over the flag of the step; at an interval, look at those since the last look."""
        if not self._active:
            return
        bad, self._bad = self._bad, None
        outputs = outputs or {}
        if bad is None:  # an optimizer wrapper that knows no guard: found, but not prevented
            if not isinstance(outputs.get("loss"), Tensor):
                return
            bad = _is_bad(outputs["loss"].detach())
        iteration = runner.iter + 1
        if bad is False and self.action != "skip":
            self._good_until = iteration  # there is nothing to remember
        else:
            self._steps.append(_Step(iteration, bad, outputs))
        done = batch_idx + 1 if self.interval is None else iteration
        if done % (self.interval or self._inner_interval) == 0 or batch_idx + 1 == self._epoch_length:
            self._look(runner)

    def after_train_epoch(self, runner: Any) -> None:
        """Look at the rest of the epoch."""
        self._look(runner)

    def before_val_epoch(self, runner: Any) -> None:
        """Look at the rest before weights are judged."""
        self._look(runner)

    def before_capture(self, runner: Any) -> None:
        """Look at the rest before a checkpoint is made."""
        self._look(runner)

    def close(self, runner: Any) -> None:
        """Leave the optimizer wrapper as it was."""
        for wrapper in _wrappers(runner):
            if getattr(wrapper, "guard", None) == self._guard:
                wrapper.guard = None

    def _guard(self, loss: Tensor) -> Tensor | bool:
        bad = _is_bad(loss)
        if bad is False and self._was_bad is False and not self._several:  # nearly every step on a CPU
            if self._bad is None:
                self._bad = False
            return False
        if self._several:
            everywhere = torch.as_tensor(bad, device=loss.device).to(torch.uint8)
            distributed.all_reduce(everywhere, distributed.ReduceOp.MAX)
            bad = everywhere > 0
        if self.action != "skip":
            # No step follows a bad one: the weights found at the next look are those right before it.
            bad = self._was_bad = either(bad, self._was_bad)
        self._bad = either(bad, False if self._bad is None else self._bad)  # several wrappers in one step
        return bad

    def _look(self, runner: Any) -> None:
        steps, self._steps = self._steps, []
        if not steps:
            if self._good_until > self._buffers[0]:
                self._keep_buffers(runner, self._good_until)
            return
        flags = _read([step.bad for step in steps])
        if not any(flags):
            self._skipped = 0
            self._keep_buffers(runner, steps[-1].iteration)
            return
        first = flags.index(True)
        if self.action == "skip":
            self._skip(runner, steps, flags)
        elif not runner.train_loop.stop_training:
            message = self._report(runner, steps[first], steps[first].iteration - 1)
            if self.action == "raise":
                raise FloatingPointError(message)
            runner.logger.error(f"{message}. The run ends here")
            runner.train_loop.stop_training = True

    def _skip(self, runner: Any, steps: list[_Step], flags: list[bool]) -> None:
        for step, bad in zip(steps, flags, strict=True):
            self._skipped = self._skipped + 1 if bad else 0
            if not bad:
                continue
            message = self._report(runner, step, _weights_after(steps, flags, step.iteration))
            if self._skipped > self.max_skipped:
                raise FloatingPointError(f"{message}. It is step {self._skipped} in a row that is left out")
            # Formatted here: mmengine drops a second warning of the same format.
            runner.logger.warning(f"{message}. The step is left out")

    def _report(self, runner: Any, step: _Step, weights_after: int) -> str:
        """Write the bundle, and tell what is known; all processes come here at the same step."""
        batch, problem = _batch_again(runner, step.iteration)
        losses = {name: float(value) for name, value in step.outputs.items() if isinstance(value, (Tensor, int, float))}
        state = self._mend_buffers(runner, step.iteration)
        path = None
        if self.bundle and _not_finite(losses) and (self.action != "skip" or self._bundles < 3):
            self._bundles += 1
            name = "bundle.pth" if runner.world_size == 1 else f"bundle_rank{runner.rank}.pth"
            path = Path(runner.work_dir, f"invalid_loss_iter_{step.iteration}", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_checkpoint_file(bundle_of(runner, step.iteration, state, losses, batch, weights_after), path)
        file = None if path is None else str(path)
        accounts = all_gather(_Account(losses, image_names(batch), impossible_boxes(batch), problem, file))
        bad = [(rank, account) for rank, account in enumerate(accounts) if _not_finite(account.losses)]
        return _message(step.iteration, bad, len(accounts))

    def _keep_buffers(self, runner: Any, done: int) -> None:
        own = {name: buffer for name, buffer in inner_model(runner.model).named_buffers() if buffer.is_floating_point()}
        self._buffers = (done, {name: buffer.detach().clone() for name, buffer in own.items()})

    def _mend_buffers(self, runner: Any, iteration: int) -> dict[str, Tensor]:
        """Take spoilt buffers back to the last look; returns the state with which to repeat the step."""
        done, kept = self._buffers
        model = inner_model(runner.model)
        for name, buffer in model.named_buffers():
            if name in kept:
                buffer.copy_(torch.where(torch.isfinite(buffer), buffer, kept[name]))
        for hook in runner.hooks:  # an average has taken them over since
            if isinstance(hook, EMAHook):
                hook.mend()
        state = model.state_dict()
        if done == iteration - 1:  # exactly as they were
            state.update({name: value for name, value in kept.items() if name in state})
        return state


def _wrappers(runner: Any) -> list[Any]:
    wrapper = runner.optim_wrapper
    return list(wrapper.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _is_bad(loss: Tensor) -> Tensor | bool:
    if loss.is_cpu:  # there is nothing to wait for
        return not math.isfinite((loss if loss.dtype is torch.float32 else loss.float()).numpy())
    return _is_bad_on_device(loss)


def _is_bad_on_device(loss: Tensor) -> Tensor:
    # x - x is 0 where x is finite; torch.isfinite takes five kernels.
    return (loss - loss) != 0


def _weights_after(steps: list[_Step], flags: list[bool], iteration: int) -> int:
    """Iterations after which the model had its weights of now: those before ``iteration``, if none was good since."""
    last = max(step.iteration for step, bad in zip(steps, flags, strict=True) if not bad or step.iteration == iteration)
    return iteration - 1 if last == iteration else last


def _read(flags: list[Tensor | bool]) -> list[bool]:
    on_device = [flag for flag in flags if isinstance(flag, Tensor)]
    fetched = iter(torch.stack(on_device).tolist() if on_device else [])
    return [flag if isinstance(flag, bool) else next(fetched) for flag in flags]


def _not_finite(losses: Mapping[str, float]) -> bool:
    return not all(math.isfinite(value) for name, value in losses.items() if "loss" in name)


def _batch_again(runner: Any, iteration: int) -> tuple[Any, str]:
    """The batch of an iteration, or why it is not there: that must not hide the loss."""
    try:
        return runner.train_loop.load_again(iteration), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _message(iteration: int, bad: list[tuple[int, _Account]], world_size: int) -> str:
    parts = []
    for rank, account in bad[:_NAMED_RANKS]:
        losses = ", ".join(f"{name}={value:.6g}" for name, value in account.losses.items() if "loss" in name)
        unknown = account.problem or "its samples are no data_samples"
        where = f"on rank {rank}: " if world_size > 1 else ""
        parts.append(f"{where}{losses}; images of this batch: {', '.join(account.images) or f'not known ({unknown})'}")
    if len(bad) > _NAMED_RANKS:
        parts.append(f"and on {len(bad) - _NAMED_RANKS} ranks more")
    boxes = [box for _, account in bad for box in account.boxes][:_NAMED_RANKS]
    if boxes:
        remedy = f"Mend its boxes, or the step of the pipeline that makes them so: {'; '.join(boxes)}"
    else:
        remedy = (
            "Look at its boxes; if they are sound, lower the learning rate or clip the gradient "
            "(optim_wrapper.clip_grad=dict(max_norm=10))"
        )
    file = next((account.file for _, account in bad if account.file is not None), None)
    find = "" if file is None else f"To find the image: python tools/replay.py {file}. "
    return f"the loss is not finite at iteration {iteration}: {'; '.join(parts)}. {find}{remedy}"
