"""``activation_checkpointing`` and ``efficient_conv_bn_eval``: less memory for the activations of named modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval_for_single_model
from torch import nn

from detkit.engine.model.module_names import as_names, find_modules
from detkit.recompute import recomputed

__all__ = ["checkpoint_activations", "merge_conv_and_frozen_norm"]


def checkpoint_activations(model: nn.Module, names: str | Sequence[str]) -> None:
    """Recompute the activations of modules in the backward pass instead of keeping them (https://arxiv.org/abs/1604.06174).

    Gradients, random numbers and running statistics of batch norms are what they are without. mmengine's form, which is
    reentrant, freezes the weights of modules whose inputs need no gradient, and passes no keyword arguments.

    Args:
        model: Not wrapped for several processes.
        names: Of modules, such as ``'backbone.layer1'``; large ones, one after the other, save the most.

    Raises:
        ValueError: There is no module of a name.
    """
    for module in find_modules(model, names, "activation_checkpointing"):
        forward = vars(module).get("forward")
        function = type(module).forward if forward is None else forward.__func__
        if not getattr(function, "recomputes", False):
            # Bound to the module as methods are: a copy of the model then calls its own.
            module.forward = MethodType(_recomputing(function), module)


def merge_conv_and_frozen_norm(model: nn.Module, names: str | Sequence[str]) -> None:
    """Let convolutions apply the batch norms behind them where these are in eval mode (https://arxiv.org/abs/2305.11624).

    Args:
        model: Not wrapped for several processes.
        names: Of modules that torch.fx can trace.

    Raises:
        ValueError: There is no module of a name, or torch.fx cannot trace it.
    """
    for name, module in zip(as_names(names), find_modules(model, names, "efficient_conv_bn_eval"), strict=True):
        try:
            turn_on_efficient_conv_bn_eval_for_single_model(module)
        except Exception as error:
            raise ValueError(
                f"efficient_conv_bn_eval: torch.fx cannot trace {name!r} ({type(module).__name__}): {error}; name "
                "modules inside it instead"
            ) from error


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputing(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return recomputed(forward, self, *args, **kwargs)

    recomputing.recomputes = True  # type: ignore[attr-defined]
    return recomputing
