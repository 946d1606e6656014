"""Optimizer wrappers: gradient clipping without a synchronisation, mixed precision on any device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from torch import Tensor, nn

from detkit.registry import OPTIM_WRAPPERS, check_keys

__all__ = ["AmpOptimWrapper", "OptimWrapper"]

_CLIP_KEYS = {
    "norm": {"type", "max_norm", "norm_type", "error_if_nonfinite", "foreach"},
    "value": {"type", "clip_value", "foreach"},
}


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(MMEngineOptimWrapper):
    """Backward, accumulation, clipping and step; arguments are mmengine's.

    Args:
        optimizer: Of torch.
        accumulative_counts: Iterations whose gradients are summed before a step.
        clip_grad: Arguments of ``clip_grad_norm_`` or, with ``type='value'``, of ``clip_grad_value_``.

    Attributes:
        grad_norm: () norm of the gradient at the last step before clipping, on its device; None without clipping.

    Raises:
        KeyError: An argument that the clipping function does not have.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
    ) -> None:
        if clip_grad is not None:
            kind = clip_grad.get("type", "norm")
            if kind not in _CLIP_KEYS:
                raise ValueError(f"optim_wrapper.clip_grad.type: 'norm' or 'value' was expected, got {kind!r}")
            check_keys(clip_grad, _CLIP_KEYS[kind], "clip_grad")
        # mmengine takes keys out of the dict it is given: it gets a copy.
        super().__init__(optimizer, accumulative_counts, dict(clip_grad) if clip_grad is not None else None)
        self.grad_norm: Tensor | None = None

    def _clip_grad(self) -> None:
        # mmengine reads the norm here, at every step; LoggerHook reads it once per interval.
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if parameters:
            self.grad_norm = self.clip_func(parameters, **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """Mixed precision by ``torch.autocast``; mmengine's class of this name refuses to run on a CPU.

    Args:
        loss_scale: ``'dynamic'``, a fixed factor, or arguments of ``torch.amp.GradScaler``. Only float16 is
            scaled: bfloat16 has float32's range.
        dtype: ``'float16'``, ``'bfloat16'`` or the torch dtype; None is float16 on CUDA, bfloat16 on a CPU.
        optimizer: Of torch.
        accumulative_counts: Iterations whose gradients are summed before a step.
        clip_grad: See :class:`OptimWrapper`; gradients are unscaled first.

    Raises:
        ValueError: Another dtype or loss scale.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
        loss_scale: str | float | Mapping[str, Any] = "dynamic",
        dtype: str | torch.dtype | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad)
        self.device_type = optimizer.param_groups[0]["params"][0].device.type
        self.dtype = _low_precision(dtype, self.device_type)
        options: dict[str, Any] = {}
        self._fixed_scale: float | None = None
        if isinstance(loss_scale, Mapping):
            options = dict(loss_scale)
        elif isinstance(loss_scale, (int, float)):
            self._fixed_scale = options["init_scale"] = float(loss_scale)
        elif loss_scale != "dynamic":
            raise ValueError(f"AmpOptimWrapper: loss_scale is 'dynamic', a number or a dict, got {loss_scale!r}")
        options["enabled"] = self.dtype is torch.float16
        self.loss_scaler = torch.amp.GradScaler(self.device_type, **options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Forward passes inside run in ``dtype`` where that is safe."""
        with super().optim_context(model), torch.autocast(self.device_type, self.dtype):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of the scaled loss."""
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Update the parameters, unless a scaled gradient overflowed."""
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._fixed_scale)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state and, for float16, the scaler's."""
        state = super().state_dict()
        if self.loss_scaler.is_enabled():
            state["loss_scaler"] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; a state without a scaler's leaves the scaler at its start."""
        state = dict(state_dict)
        scaler = state.pop("loss_scaler", None)
        if scaler is not None and self.loss_scaler.is_enabled():
            self.loss_scaler.load_state_dict(scaler)
        super().load_state_dict(state)


def _low_precision(dtype: str | torch.dtype | None, device_type: str) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device_type == "cuda" else torch.bfloat16
    for name, known in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        if dtype in (name, known):
            return known
    raise ValueError(f"AmpOptimWrapper: dtype is 'float16', 'bfloat16' or None, got {dtype!r}")
