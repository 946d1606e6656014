"""Mixed precision by ``torch.autocast``, on any device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detkit.engine.optim.skipping import prepare_momentum
from detkit.engine.optim.wrappers import OptimWrapper
from detkit.registry import OPTIM_WRAPPERS

__all__ = ["AmpOptimWrapper"]


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper):
    """Mixed precision by ``torch.autocast``; mmengine's class of this name refuses to run on a CPU.

    Only float16 is scaled: bfloat16 has float32's range. With float16, an optimizer without ``fused=True`` makes the
    host wait for the device at each step, as ``torch.amp.GradScaler`` then reads whether a gradient overflowed. A step
    that ``guard`` forbids leaves the scale as it is: a loss that is not finite says nothing about it.

    Args:
        optimizer: Of torch.
        accumulative_counts: See :class:`OptimWrapper`.
        clip_grad: See :class:`OptimWrapper`; gradients are unscaled first.
        set_to_none: See :class:`OptimWrapper`.
        loss_scale: ``'dynamic'``, a fixed factor, or arguments of ``torch.amp.GradScaler``.
        dtype: ``'float16'``, ``'bfloat16'`` or the torch dtype; None is float16 on CUDA, bfloat16 on a CPU.

    Raises:
        ValueError: Another dtype or loss scale.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accumulative_counts: int = 1,
        clip_grad: Mapping[str, Any] | None = None,
        set_to_none: bool = True,
        loss_scale: str | float | Mapping[str, Any] = "dynamic",
        dtype: str | torch.dtype | None = None,
    ) -> None:
        super().__init__(optimizer, accumulative_counts, clip_grad, set_to_none)
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
        self._is_unscaled = False

    @property
    def loss_scale(self) -> Tensor | float | None:
        """The factor on losses, (), on its device without a wait for it; a number if fixed; None without scaling."""
        if not self.loss_scaler.is_enabled():
            return None
        if self._fixed_scale is not None:
            return self._fixed_scale
        return self.loss_scaler.scale(self._parameters()[0].new_ones((), dtype=torch.float32)).detach()

    def optim_context(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Forward passes inside run in ``dtype`` where that is safe."""
        if self._accumulative_counts == 1:
            return torch.autocast(self.device_type, self.dtype)
        return self._autocast_within(super().optim_context(model))

    @contextmanager
    def _autocast_within(self, outer: AbstractContextManager[Any]) -> Iterator[None]:
        with outer, torch.autocast(self.device_type, self.dtype):
            yield

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Add the gradients of the scaled loss."""
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Update the parameters, unless a scaled gradient overflowed."""
        if self._clip is not None:
            self._unscale()
            self._clip_grad()
        if self.loss_scaler.is_enabled():
            prepare_momentum(self.optimizer)
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._fixed_scale)
        self._is_unscaled = False

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

    def _can_skip_on_device(self, flag: Tensor) -> bool:
        # The scaler uses found_inf itself, and would lower its scale.
        return not self.loss_scaler.is_enabled() and super()._can_skip_on_device(flag)

    def _leave_out_step(self) -> None:
        if self._is_unscaled:  # the scaler expects an update after it; one to the same scale changes nothing
            scale = self.loss_scale
            assert scale is not None
            self.loss_scaler.update(scale)
            self._is_unscaled = False

    def _unscale(self) -> None:
        if self.loss_scaler.is_enabled() and not self._is_unscaled:
            self.loss_scaler.unscale_(self.optimizer)
            self._is_unscaled = True


def _low_precision(dtype: str | torch.dtype | None, device_type: str) -> torch.dtype:
    if dtype is None:
        return torch.float16 if device_type == "cuda" else torch.bfloat16
    for name, known in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        if dtype in (name, known):
            return known
    raise ValueError(f"AmpOptimWrapper: dtype is 'float16', 'bfloat16' or None, got {dtype!r}")
