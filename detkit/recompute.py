"""Activations that are computed again in the backward pass instead of kept (https://arxiv.org/abs/1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]


def recomputed(forward: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call ``forward(module, ...)`` and keep none of its activations.

    Gradients, random numbers and the running statistics of batch norms are what they are without;
    ``torch.utils.checkpoint`` by itself moves the statistics twice.

    Args:
        forward: Function of a module, such as ``type(module).forward``, or, with its hooks, ``nn.Module.__call__``.
        module: The module.
        args: Handed on.
        kwargs: Handed on.

    Returns:
        What ``forward`` returns.
    """
    if not torch.is_grad_enabled():
        return forward(module, *args, **kwargs)
    if torch.compiler.is_compiling():  # a compiler that differentiates changes buffers once
        return checkpoint(forward, module, *args, use_reentrant=False, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _kept_statistics(module)

    return checkpoint(forward, module, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms move copies of their running statistics: the first pass has moved these already."""
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        for name, buffer in norm._buffers.items():
            norm._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
