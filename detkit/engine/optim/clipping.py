"""Gradient clipping, without the host waiting for a norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detkit.registry import check_keys

__all__ = ["build_clipper"]

Clipper = Callable[[list[nn.Parameter]], "Tensor | None"]

_KEYS = {
    "norm": {"type", "scope", "max_norm", "norm_type", "error_if_nonfinite", "foreach"},
    "value": {"type", "scope", "clip_value", "foreach"},
}
_LIMITS = {"norm": "max_norm", "value": "clip_value"}


def build_clipper(clip_grad: Mapping[str, Any] | None) -> Clipper | None:
    """The function that clips gradients in place.

    Args:
        clip_grad: ``type`` is ``'norm'`` (of ``clip_grad_norm_``; ``max_norm``, ``norm_type``) or ``'value'`` (of
            ``clip_grad_value_``; ``clip_value``). ``scope`` is ``'global'``, one norm over all parameters, or
            ``'per_param'``, where each parameter has its own, as Detectron2 clips. None clips nothing.

    Returns:
        Takes the parameters that have a gradient, and returns the norm of the whole gradient before clipping, (), on
        its device, or None with ``'value'``. None where ``clip_grad`` is None.

    Raises:
        KeyError: A key that nobody reads, or no limit.
        ValueError: Another type or scope, or a limit that is not positive.
    """
    if clip_grad is None:
        return None
    options = dict(clip_grad)
    kind, scope = options.get("type", "norm"), options.get("scope", "global")
    if kind not in _KEYS:
        raise ValueError(f"optim_wrapper.clip_grad.type: 'norm' or 'value' was expected, got {kind!r}")
    if scope not in ("global", "per_param"):
        raise ValueError(f"optim_wrapper.clip_grad.scope: 'global' or 'per_param' was expected, got {scope!r}")
    check_keys(options, _KEYS[kind], "clip_grad")
    limit = options.get(_LIMITS[kind])
    if limit is None:
        raise KeyError(f"optim_wrapper.clip_grad.{_LIMITS[kind]} is missing: the largest {kind} a gradient may have")
    if not limit > 0:
        raise ValueError(f"optim_wrapper.clip_grad.{_LIMITS[kind]}: must be positive, got {limit}")
    settings = {key: value for key, value in options.items() if key not in ("type", "scope")}
    if kind == "value":
        return lambda parameters: nn.utils.clip_grad_value_(parameters, **settings)
    if scope == "global":
        return lambda parameters: nn.utils.clip_grad_norm_(parameters, **settings)
    for key in ("error_if_nonfinite", "foreach"):
        if key in settings:
            raise ValueError(f"optim_wrapper.clip_grad.{key}: only scope='global' has it")
    return lambda parameters: _clip_each_norm(parameters, **settings)


def _clip_each_norm(parameters: list[nn.Parameter], max_norm: float, norm_type: float = 2.0) -> Tensor:
    norms = []
    by_device: dict[torch.device, list[Tensor]] = {}
    for parameter in parameters:
        assert parameter.grad is not None  # the caller chose them so
        by_device.setdefault(parameter.grad.device, []).append(parameter.grad)
    for gradients in by_device.values():
        own = torch.stack(torch._foreach_norm(gradients, float(norm_type)))
        factors = (max_norm / (own + 1e-6)).clamp(max=1.0)  # the 1e-6 is clip_grad_norm_'s
        torch._foreach_mul_(gradients, list(factors.unbind()))
        norms.append(own)
    first = norms[0].device
    return torch.linalg.vector_norm(torch.cat([own.to(first, non_blocking=True) for own in norms]), norm_type)
