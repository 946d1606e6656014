"""What training steps report, kept on the device until somebody reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["StepRecord", "StepValues"]


class StepValues(NamedTuple):
    """What one iteration reported.

    Attributes:
        step: Iterations done, this one included.
        values: Losses and whatever else the model logs.
    """

    step: int
    values: dict[str, float]


class _Pending(NamedTuple):
    step: int
    names: list[str]
    values: Tensor  # (K,) float32, where the model is
    numbers: dict[str, float]  # already on the host
    images: list[str]


class StepRecord:
    """Collects what iterations report and reads all of it in one transfer.

    Reading each loss at each iteration, as mmengine does, makes the host wait for the device every time.
    """

    def __init__(self) -> None:
        self._pending: list[_Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, step: int, values: Mapping[str, Any], images: Sequence[str] = ()) -> None:
        """Take over one iteration's values without waiting for them.

        Args:
            step: Iterations done, this one included.
            values: Scalars: tensors of one element, or numbers.
            images: Paths of the batch's images, named if a loss turns out not to be finite.
        """
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        numbers = {name: float(value) for name, value in values.items() if name not in tensors}
        scalars = [value.detach().reshape(()).float() for value in tensors.values()]
        stacked = torch.stack(scalars) if scalars else torch.empty(0)
        self._pending.append(_Pending(step, list(tensors), stacked, numbers, list(images)))

    def read(self) -> list[StepValues]:
        """Fetch and forget everything added since the last call; the one place where training waits.

        Raises:
            FloatingPointError: A loss is not finite: the first such iteration, its losses, its images.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return []
        tensors = [entry.values for entry in pending if entry.names]
        fetched = iter(torch.cat(tensors).tolist() if tensors else [])
        steps = []
        for entry in pending:
            values = {**{name: next(fetched) for name in entry.names}, **entry.numbers}
            if not all(math.isfinite(value) for name, value in values.items() if "loss" in name):
                raise FloatingPointError(_not_finite(entry, values))
            steps.append(StepValues(entry.step, values))
        return steps


def _not_finite(entry: _Pending, values: Mapping[str, float]) -> str:
    losses = ", ".join(f"{name}={value:.6g}" for name, value in values.items() if "loss" in name)
    images = ", ".join(entry.images) or "not known (the batch's samples carry no img_path)"
    return (
        f"the loss is not finite at iteration {entry.step}: {losses}; images of this batch: {images}. "
        "Look at their boxes; if they are sound, lower the learning rate or clip the gradient "
        "(optim_wrapper.clip_grad=dict(max_norm=10))"
    )
