"""Averages of a model's weights over its training: exponential ones, and stochastic weight averaging.

mmengine's classes of these names keep the count of updates on the device and read it twice an iteration, and launch
three kernels per parameter. Here the count is a number, and all parameters are averaged by one call.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from copy import deepcopy
from types import FunctionType
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from detkit.engine.parallel.inner_model import inner_model
from detkit.registry import MODELS

__all__ = [
    "AveragedModel",
    "ExpMomentumEMA",
    "ExponentialMovingAverage",
    "LinearWarmupEMA",
    "MomentumAnnealingEMA",
    "StochasticWeightAverage",
    "swap_weights",
]


class _Slot(NamedTuple):
    """Where a tensor of both models lies; which one it is may change, as models replace buffers."""

    averaged: dict[str, Any]
    source: dict[str, Any]
    key: str
    is_averaged: bool


class AveragedModel(nn.Module):
    """A copy of a model whose weights are an average of those that the model had; calling it calls the copy.

    Parameters are averaged, in their own dtype and where they are; buffers are taken over as they are. State-dict
    keys are mmengine's: ``steps`` and ``module.*``.

    Args:
        model: To be averaged; may be wrapped for several processes, or compiled.
        interval: Calls of :meth:`update_parameters` per update.
        device: Of the average; None is that of each parameter.
        update_buffers: Average floating-point buffers too; others are still taken over. Buffers that a checkpoint
            does not hold are left alone in any case.

    Attributes:
        module: The copy.
        steps: Calls of :meth:`update_parameters` so far.

    Raises:
        ValueError: ``interval`` is less than 1.
    """

    def __init__(
        self,
        model: nn.Module,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__()
        if interval < 1:
            raise ValueError(f"{type(self).__name__}: interval must be at least 1, got {interval}")
        self.module = _copy(_unwrapped(model)).requires_grad_(False)
        self._is_elsewhere = device is not None
        if device is not None:
            self.module.to(device)
        self.interval = interval
        self.update_buffers = update_buffers
        self.steps = 0
        # In a tuple, so that it does not become a submodule.
        self._source: tuple[nn.Module, list[_Slot]] | None = None

    def new_weight(self, steps: int) -> float:
        """Weight of the model's present parameters in the average, in [0, 1].

        Args:
            steps: Calls of :meth:`update_parameters` before this one, at least 1.
        """
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the average."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's present weights into the average; the first time, take them over.

        Nothing here waits for the device.
        """
        slots = self._slots(model)
        copied = [slot for slot in slots if self.steps == 0 or not slot.is_averaged]
        if copied:
            pairs = [(slot.averaged[slot.key], slot.source[slot.key]) for slot in copied]
            torch._foreach_copy_([into for into, _ in pairs], [value for _, value in pairs])
        if self.steps > 0 and self.steps % self.interval == 0:
            averaged = [slot.averaged[slot.key] for slot in slots if slot.is_averaged]
            source = [slot.source[slot.key] for slot in slots if slot.is_averaged]
            if averaged:
                if self._is_elsewhere:
                    source = [one.to(into.device) for one, into in zip(source, averaged, strict=True)]
                torch._foreach_lerp_(averaged, source, self.new_weight(self.steps))
        self.steps += 1

    @torch.no_grad()
    def mend(self, model: nn.Module) -> None:
        """Take over from ``model`` those numbers of the average that are not finite."""
        for slot in self._slots(model):
            into = slot.averaged[slot.key]
            into.copy_(torch.where(torch.isfinite(into), into, slot.source[slot.key].to(into.device)))

    def _slots(self, model: nn.Module) -> list[_Slot]:
        if self._source is None or self._source[0] is not model:
            own = {one.name: one.place for one in _tensors(self.module)}
            slots = []
            for name, place, key, is_buffer in _tensors(_unwrapped(model)):
                if name not in own:
                    raise ValueError(f"{type(self).__name__}: the model that was copied has no {name}")
                is_float = place[key].is_floating_point() or place[key].is_complex()
                slots.append(_Slot(own[name], place, key, is_float and (self.update_buffers or not is_buffer)))
            self._source = (model, slots)
        return self._source[1]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}steps"] = torch.tensor(self.steps)
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}steps"
        if key in state_dict:
            self.steps = int(state_dict[key])
        elif strict:
            missing_keys.append(key)
        rest = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


@torch.no_grad()
def swap_weights(one: nn.Module, other: nn.Module) -> None:
    """Exchange parameters and buffers of two models of one kind, in place; twice is nothing at all."""
    places = {named.name: named.place for named in _tensors(other)}
    for name, place, key, _ in _tensors(one):
        mine, theirs = place[key], places[name][key]
        before = mine.clone()
        mine.copy_(theirs)
        theirs.copy_(before)


@MODELS.register_module()
class StochasticWeightAverage(AveragedModel):
    """The mean of all weights taken in; Izmailov et al., https://arxiv.org/abs/1803.05407."""

    def new_weight(self, steps: int) -> float:
        """One over the number of updates with this one."""
        return 1.0 / (steps // self.interval + 1)


@MODELS.register_module()
class ExponentialMovingAverage(AveragedModel):
    """``average = (1 - momentum) * average + momentum * weights``.

    ``momentum`` is the weight of the new, in (0, 1) or else a ValueError; small, unlike an optimizer's. The other
    arguments are those of :class:`AveragedModel`.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        if not 0.0 < momentum < 1.0:
            raise ValueError(f"{type(self).__name__}: momentum lies in (0, 1), got {momentum}")
        if momentum > 0.5:
            print_log(
                f"{type(self).__name__}: momentum {momentum} is the weight of the new parameters, which is usually "
                f"small; was {1 - momentum:.6g} meant?",
                logger="current",
                level=logging.WARNING,
            )
        super().__init__(model, interval, device, update_buffers)
        self.momentum = momentum

    def new_weight(self, steps: int) -> float:
        """The momentum."""
        return self.momentum


@MODELS.register_module()
class MomentumAnnealingEMA(ExponentialMovingAverage):
    """Exponential average with ``max(momentum, gamma / (gamma + steps))``, so that early weights are soon forgotten.

    ``gamma`` is the number of steps after which it is a half; the other arguments are those of
    :class:`ExponentialMovingAverage`, and so is the ValueError for one out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 100,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        self.gamma = _positive(self, "gamma", gamma)

    def new_weight(self, steps: int) -> float:
        """The annealed momentum."""
        return max(self.momentum, self.gamma / (self.gamma + steps))


@MODELS.register_module()
class ExpMomentumEMA(ExponentialMovingAverage):
    """Exponential average whose momentum falls as ``(1 - momentum) * exp(-(1 + steps) / gamma) + momentum``.

    MMDetection's, for YOLOX and RTMDet.

    ``gamma`` is the number of steps in which it falls by a factor of e; the other arguments are those of
    :class:`ExponentialMovingAverage`, and so is the ValueError for one out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 2000,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        self.gamma = _positive(self, "gamma", gamma)

    def new_weight(self, steps: int) -> float:
        """The momentum of this step."""
        return (1 - self.momentum) * math.exp(-(1 + steps) / self.gamma) + self.momentum


@MODELS.register_module()
class LinearWarmupEMA(ExponentialMovingAverage):
    """Exponential average whose momentum falls from 1 to its value on a line.

    ``warmup`` is the number of steps until it is there; the other arguments are those of
    :class:`ExponentialMovingAverage`, and so is the ValueError for one out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        warmup: int = 2000,
        interval: int = 1,
        device: torch.device | str | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        self.warmup = _positive(self, "warmup", warmup)

    def new_weight(self, steps: int) -> float:
        """The momentum of this step."""
        return self.momentum + (1 - self.momentum) * max(0.0, 1 - steps / self.warmup)


def _positive(owner: nn.Module, name: str, value: int) -> int:
    if value <= 0:
        raise ValueError(f"{type(owner).__name__}: {name} must be positive, got {value}")
    return value


def _unwrapped(model: nn.Module) -> nn.Module:
    inner = inner_model(model)
    return getattr(inner, "_orig_mod", inner)


def _copy(model: nn.Module) -> nn.Module:
    copied = deepcopy(model)
    for module in copied.modules():
        # A compiled method kept on the object would go on calling the model that was copied.
        for name, value in list(vars(module).items()):
            if isinstance(value, FunctionType) and hasattr(value, "_torchdynamo_orig_callable"):
                delattr(module, name)
    return copied


class _Named(NamedTuple):
    """A parameter or buffer: its name without what compiling adds, the dict it lies in, and its key there."""

    name: str
    place: dict[str, Any]
    key: str
    is_buffer: bool


def _tensors(model: nn.Module) -> Iterator[_Named]:
    """Each parameter and each buffer that a checkpoint holds, once."""
    seen: set[Tensor] = set()
    for prefix, module in model.named_modules():
        prefix = f"{prefix}.".lstrip(".").replace("_orig_mod.", "")
        saved = {key: one for key, one in module._buffers.items() if key not in module._non_persistent_buffers_set}
        for place, keys in ((module._parameters, module._parameters), (module._buffers, saved)):
            for key in keys:
                tensor = place[key]
                if tensor is not None and tensor not in seen:
                    seen.add(tensor)
                    yield _Named(f"{prefix}{key}", place, key, place is module._buffers)
