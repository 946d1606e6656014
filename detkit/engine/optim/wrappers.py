"""Optimizer wrapper: backward, accumulation, clipping, step; nothing in it waits for the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from torch import Tensor, distributed, nn

from detkit.engine.distributed import is_distributed
from detkit.engine.optim.clipping import build_clipper
from detkit.engine.optim.skipping import can_skip_on_device, either, prepare_momentum, read_soon
from detkit.registry import OPTIM_WRAPPERS

__all__ = ["OptimWrapper"]

_NOTHING = nullcontext()


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(MMEngineOptimWrapper):
    """Backward, accumulation, clipping and step; arguments are mmengine's and two more.

    A step that :attr:`guard` forbids leaves weights and the optimizer's state as they were. Optimizers with
    ``fused=True`` on CUDA leave it out on the device. For others the host waits for the flag: on a CPU it is there
    already; on CUDA the host waits for the forward pass only, while the device is busy with the backward pass.

    Args:
        optimizer: Of torch.
        accumulative_counts: Iterations whose gradients are summed before a step. The loss of each is divided by it,
            and, in the last window of a run, by the number of iterations that are left.
        clip_grad: What to limit: ``dict(max_norm=10)``, ``dict(type='value', clip_value=1)``, or with
            ``scope='per_param'`` the norm of each parameter by itself; see ``optim/clipping.py``.
        set_to_none: Free gradients after a step; False fills them with zeros.

    Attributes:
        grad_norm: () norm of the gradient at the last step before clipping, on its device; None without clipping by
            norm, and where the step was left out.
        after_backward: Called after each backward pass, before clipping and step, with gradients in ``.grad``.
        guard: Called with each loss, (), before its backward pass; returns a () bool tensor on the device, or a bool
            where it is known, true if the weights must not change. Where gradients are accumulated, one true flag
            forbids the step of its window.

    Raises:
        KeyError: A key of ``clip_grad`` that nobody reads.
        ValueError: ``accumulative_counts`` is less than one, or ``clip_grad`` cannot be followed.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
        set_to_none: bool = True,
    ) -> None:
        if not isinstance(accumulative_counts, int) or accumulative_counts < 1:
            raise ValueError(
                f"optim_wrapper.accumulative_counts: must be a whole number of at least 1, got {accumulative_counts!r}"
            )
        super().__init__(optimizer, accumulative_counts)
        self._clip = build_clipper(clip_grad)
        self.set_to_none = set_to_none
        # torch's own zero_grad does no more than this, in a profiler's frame that costs more than the loop.
        own = type(optimizer).zero_grad is torch.optim.Optimizer.zero_grad
        self._can_drop_gradients = set_to_none and own and type(self).zero_grad is MMEngineOptimWrapper.zero_grad
        self.grad_norm: Tensor | None = None
        self.after_backward: Callable[[], None] | None = None
        self.guard: Callable[[Tensor], Tensor | bool] | None = None
        self._forbidden: Tensor | bool = False  # the guard's flag for the window so far

    def update_params(
        self, loss: Tensor, step_kwargs: dict[str, Any] | None = None, zero_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Add the gradients of a loss, and at the end of a window update the parameters.

        Args:
            loss: (), the mean over the iteration's batch.
            step_kwargs: Arguments for the optimizer's ``step``.
            zero_kwargs: Arguments for the optimizer's ``zero_grad``.
        """
        leave_out = False if self.guard is None else self._ask_guard(loss)
        self.backward(self.scale_loss(loss))
        updates = self.should_update()
        if self.after_backward is not None:
            if updates:
                self._unscale()
            self.after_backward()
        if not updates:
            return
        if isinstance(leave_out, Tensor):
            self._step_unless(leave_out, step_kwargs or {})
        elif leave_out is True or (leave_out is not False and leave_out()):
            self.grad_norm = None
            self._leave_out_step()
        else:
            self.step(**(step_kwargs or {}))
        if zero_kwargs or not self._can_drop_gradients:
            self.zero_grad(**(zero_kwargs or {"set_to_none": self.set_to_none}))
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def step(self, **kwargs: Any) -> None:
        """Clip the gradients and update the parameters."""
        self._clip_grad()
        self.optimizer.step(**kwargs)

    def optim_context(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around the forward pass: without synchronising gradients over processes where no step follows."""
        if self._accumulative_counts == 1 or self.should_sync() or not hasattr(model, "no_sync"):
            return _NOTHING
        no_sync: Any = model.no_sync
        return no_sync()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss divided by the number of iterations in its window."""
        size = self._accumulative_counts
        if size == 1:  # mmengine divides by one
            return loss
        done = self._inner_count
        start = done - done % size
        if done < self._max_counts < start + size:
            size = self._max_counts - start
        return loss / size

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Say where the run starts and ends; mmengine then drops gradients of a window that was begun.

        Args:
            model: What is trained.
            init_counts: Iterations done.
            max_counts: Iterations there will be.
        """
        self._inner_count, self._max_counts = init_counts, max_counts
        self._remainder_counts = max_counts % self._accumulative_counts
        begun = init_counts % self._accumulative_counts
        if begun and not any(parameter.grad is not None for parameter in self._parameters()):
            print_log(
                f"the gradients of {begun} iterations of an unfinished window of accumulative_counts="
                f"{self._accumulative_counts} are not there: the window's step is made without them",
                logger="current",
                level=logging.WARNING,
            )

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and the gradients of a window that is not finished."""
        state = super().state_dict()
        done = self._inner_count % self._accumulative_counts
        gradients = [parameter.grad for parameter in self._parameters()]
        if done and any(gradient is not None for gradient in gradients):
            state["accumulation"] = {
                "done": done,
                "counts": self._accumulative_counts,
                "gradients": gradients,
                "forbidden": bool(self._forbidden),
            }
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; gradients of a window of another size are left out."""
        state = dict(state_dict)
        begun = state.pop("accumulation", None)
        super().load_state_dict(state)
        if begun is None or begun["counts"] != self._accumulative_counts:
            return
        parameters = self._parameters()
        for parameter, gradient in zip(parameters, begun["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
        self._forbidden = begun["forbidden"]

    def share_begun_window(self) -> None:
        """Give all processes of a data-parallel run the mean of their gradients of a window that is not finished.

        Each has its own until the window's last backward pass, which takes the mean. A checkpoint holds those of one
        process: taken early, the mean is in it. Every process must call this; nothing happens between windows.
        """
        parameters = self._parameters()
        if not is_distributed() or self._inner_count % self._accumulative_counts == 0:
            return
        there = torch.stack([parameter.new_tensor(float(parameter.grad is not None)) for parameter in parameters])
        distributed.all_reduce(there)  # a process may have left out what another used
        for parameter, count in zip(parameters, there.tolist(), strict=True):
            if count:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                distributed.all_reduce(gradient)
                parameter.grad = gradient.div_(distributed.get_world_size())

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _ask_guard(self, loss: Tensor) -> Tensor | bool | Callable[[], bool]:
        """Whether to leave out the step that this iteration ends with: known, on the device, or known when called."""
        assert self.guard is not None
        flag = self.guard(loss.detach())
        if self._accumulative_counts > 1:
            flag = self._forbidden = either(flag, self._forbidden)
            if not self.should_sync():
                return False
            self._forbidden = False
        if isinstance(flag, bool) or self._can_skip_on_device(flag):
            return flag
        return read_soon(flag)

    def _can_skip_on_device(self, flag: Tensor) -> bool:
        return can_skip_on_device(self.optimizer, flag)

    def _step_unless(self, forbidden: Tensor, step_kwargs: dict[str, Any]) -> None:
        optimizer: Any = self.optimizer
        prepare_momentum(optimizer)
        optimizer.grad_scale, optimizer.found_inf = None, forbidden.float()
        try:
            self.step(**step_kwargs)
        finally:
            del optimizer.grad_scale, optimizer.found_inf

    def _leave_out_step(self) -> None:
        """What remains to be done where a step is left out."""

    def _unscale(self) -> None:
        """Give the gradients of a scaled loss their true size."""

    def _clip_grad(self) -> None:
        # mmengine reads the norm here, at every step; LoggerHook reads it once per interval.
        if self._clip is None:
            return
        parameters = [parameter for parameter in self._parameters() if parameter.grad is not None]
        norm: Any = self._clip(parameters) if parameters else None
        # Of sharded parameters it is a sum that is still spread over the processes.
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
