"""Leaving out an optimizer step because of a flag that lives on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["can_skip_on_device", "either", "prepare_momentum", "read_soon"]


def can_skip_on_device(optimizer: torch.optim.Optimizer, flag: Tensor) -> bool:
    """Whether the optimizer's kernel itself can leave out the step: those with ``fused=True``, on CUDA.

    They take a tensor ``found_inf``, which is there for ``torch.amp.GradScaler``.
    """
    return (
        flag.is_cuda
        and getattr(optimizer, "_step_supports_amp_scaling", False)
        and not any(group.get("dampening") for group in optimizer.param_groups)
    )


def either(flag: Tensor | bool, other: Tensor | bool) -> Tensor | bool:
    """Whether one of two flags is true, on the device if one is there."""
    if isinstance(flag, bool) and isinstance(other, bool):
        return flag or other
    return flag | other


def prepare_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Start the momentum of a fused SGD at zero, which is where its first step starts from too.

    torch leaves it uninitialised if the first step is left out, and uses it in the second.
    """
    if not isinstance(optimizer, torch.optim.SGD) or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return
    for group in optimizer.param_groups:
        if not group["momentum"] or group["dampening"]:
            continue
        for parameter in group["params"]:
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def read_soon(flag: Tensor) -> Callable[[], bool]:
    """Begin to fetch a flag, and return the function that waits for it.

    On CUDA the wait is for what was queued up to this call only: called between forward and backward, and read after
    backward was queued, it leaves the device busy with the backward pass.

    Args:
        flag: (), bool.
    """
    if not flag.is_cuda:
        return lambda: bool(flag)
    host = torch.empty((), dtype=torch.bool, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(flag.device))

    def wait() -> bool:
        arrived.synchronize()
        return bool(host.numpy())

    return wait
