"""Every loss with inputs for it: what ``test_contract.py`` holds each of them to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detkit.losses import CrossEntropyLoss, FocalLoss, L1Loss, SmoothL1Loss


class Entry(NamedTuple):
    """One loss.

    Attributes:
        id: Unique name.
        build: Makes the loss; called with ``reduction=`` where the loss has one.
        make_inputs: Called with the number of samples, which may be 0, and the type of the floats; returns the
            arguments of ``forward`` by name, of which the first one is differentiated. Away from kinks, so that
            finite differences are right. The contract adds ``avg_factor`` where ``forward`` has it.
    """

    id: str
    build: Callable[..., nn.Module]
    make_inputs: Callable[[int, torch.dtype], dict[str, Any]]


def rand(*shape: int, dtype: torch.dtype, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Uniform in [low, high), the same at every call, rounded to ``dtype``."""
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (x * (high - low) + low).to(dtype)


def labels(num: int, num_classes: int, background: bool = True) -> Tensor:
    """Labels (N,) of all classes in turn, background among them."""
    return torch.arange(num) % (num_classes + background)


def class_scores(num: int, dtype: torch.dtype, background: bool = True) -> dict[str, Tensor]:
    """Scores (N, 3) in (0.1, 0.9), good as logits and as probabilities, with labels (N,)."""
    return {
        "pred": rand(num, 3, dtype=dtype, low=0.1, high=0.9),
        "target": labels(num, 3, background),
        "weight": rand(num, dtype=dtype, seed=1),
    }


def cross_entropy_scores(num: int, dtype: torch.dtype, background: bool = False) -> dict[str, Tensor]:
    """As ``class_scores``, under the names of CrossEntropyLoss."""
    scores = class_scores(num, dtype, background)
    return {"cls_score": scores["pred"], "label": scores["target"], "weight": scores["weight"]}


def vectors(num: int, dtype: torch.dtype, weight_shape: tuple[int, ...] = (4,)) -> dict[str, Tensor]:
    """Regression values (N, 4) whose differences are up to 1."""
    return {
        "pred": rand(num, 4, dtype=dtype),
        "target": rand(num, 4, dtype=dtype, seed=2),
        "weight": rand(num, *weight_shape, dtype=dtype, seed=1),
    }


TABLE = [
    Entry("CrossEntropyLoss", CrossEntropyLoss, cross_entropy_scores),
    Entry(
        "CrossEntropyLoss-sigmoid",
        partial(CrossEntropyLoss, use_sigmoid=True, class_weight=[1.0, 2.0, 0.5]),
        partial(cross_entropy_scores, background=True),
    ),
    Entry("FocalLoss", FocalLoss, class_scores),
    Entry("FocalLoss-activated", partial(FocalLoss, activated=True), class_scores),
    Entry("L1Loss", L1Loss, vectors),
    Entry("SmoothL1Loss", partial(SmoothL1Loss, beta=0.5), partial(vectors, weight_shape=(1,))),
]
