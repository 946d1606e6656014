"""One training step: forward, the sum of the losses, backward, update."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from mmengine.model import BaseModel, MMDistributedDataParallel, detect_anomalous_params
from torch import Tensor, nn

__all__ = ["sum_losses", "train_step"]

_PLAIN = {
    "train_step": (BaseModel.train_step, MMDistributedDataParallel.train_step, None),
    "parse_losses": (BaseModel.parse_losses, None),
}


def train_step(model: nn.Module, data_batch: Any, optim_wrapper: Any) -> dict[str, Any]:
    """Train ``model`` on one batch; it is what mmengine's ``train_step`` does, with less around it.

    A model, or a wrapper around it, whose class has a ``train_step`` or ``parse_losses`` of its own is trained by that.

    Args:
        model: Of mmengine's kind: ``forward(**data, mode='loss')`` gives a dict of losses, or one loss. May be
            wrapped for several processes.
        data_batch: As the data loader gives it.
        optim_wrapper: Does backward and update; see ``OptimWrapper``.

    Returns:
        ``loss``, the sum that was optimised, and every value the model reported under its name: detached tensors
        of no dimension, on their device, or numbers.

    Raises:
        ValueError: The model is in eval mode, reports no loss, or reports something that requires a gradient under
            a name without 'loss', which would not be optimised.
        TypeError: A loss is not a tensor.
    """
    if not model.training:
        raise ValueError(
            f"{type(model).__name__} is in eval mode, so it cannot be trained: something called model.eval() and not "
            "model.train() after it"
        )
    if _own(model, "train_step"):
        outputs: Any = model.train_step(data_batch, optim_wrapper)  # type: ignore[operator]
        return _detached(outputs)
    # Wrappers are no BaseModel; mmengine's own test for them asks ten registries.
    inner: Any = model if isinstance(model, BaseModel) else getattr(model, "module", model)
    forward: Any = model._run_forward
    with optim_wrapper.optim_context(model):
        losses = forward(inner.data_preprocessor(data_batch, True), mode="loss")
    if _own(inner, "parse_losses"):
        total, values = inner.parse_losses(losses)
    else:
        total, values = sum_losses(losses)
    optim_wrapper.update_params(total)
    if inner is not model and getattr(model, "detect_anomalous_params", False):
        detect_anomalous_params(total, model=model)  # names parameters without gradient
    return _detached(values)


def sum_losses(losses: Tensor | Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The loss to optimise: the sum of all entries whose name contains 'loss'.

    Args:
        losses: What the model returned. A value is a tensor, of which the mean counts, or a list of tensors, whose
            means are added; where the name has no 'loss', also a number. A tensor by itself is the loss.

    Returns:
        The sum, (), and a dict of it under ``loss`` and of every entry under its name, (), in the order given.

    Raises:
        ValueError: No entry is a loss, none requires a gradient, or one requires a gradient and is not counted.
        TypeError: A value is something else.
    """
    if isinstance(losses, Tensor):
        losses = {"loss": losses}
    total: Any = None
    values: dict[str, Any] = {"loss": None}
    for name, given in losses.items():
        # Nearly every value is a scalar; the mean of one is itself, and would cost a node of the graph.
        value = given if isinstance(given, Tensor) and given.ndim == 0 else _scalar(name, given)
        if "loss" in name:
            total = value if total is None else total + value
        elif isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"the model returned {name!r}, which requires a gradient, but only entries whose name contains 'loss' "
                f"are optimised; call it 'loss_{name}', or return {name}.detach() to report it"
            )
        values[name] = value
    if total is None:
        raise ValueError(f"the model returned no loss: no name contains 'loss' among {list(losses)}")
    if not total.requires_grad:
        raise ValueError(
            f"the losses {[name for name in losses if 'loss' in name]} depend on no parameter that is trained"
        )
    values["loss"] = total
    return total, values


def _scalar(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return _mean(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Tensor) for one in value):
        return sum(_scalar(name, one) for one in value)
    if isinstance(value, (int, float)) and "loss" not in name:
        return value
    expected = "a tensor or a list of tensors" + ("" if "loss" in name else ", or a number")
    raise TypeError(f"the model returned {name!r} as {type(value).__name__}; {expected} was expected")


def _mean(value: Tensor) -> Tensor:
    return value.mean() if value.is_floating_point() else value.float().mean()


def _detached(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without their graph: what a model reports without one may be a buffer, which changes."""
    return {
        name: value if not isinstance(value, Tensor) else value.detach() if value.requires_grad else value.clone()
        for name, value in values.items()
    }


def _own(model: nn.Module, method: str) -> bool:
    """Whether a model brings its own method, by its class or, as ``torch.compile`` leaves it, on itself."""
    cls: Any = type(model)
    return _class_has_own(cls, method) or method in vars(model)


@cache
def _class_has_own(cls: Any, method: str) -> bool:
    return getattr(cls, method, None) not in _PLAIN[method]
