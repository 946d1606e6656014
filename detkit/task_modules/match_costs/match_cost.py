"""The contract of a match cost, per image and per batch (DETR, https://arxiv.org/abs/2005.12872, section 3.1).

Letters: N images, A predictions of each, G objects of each (padded), P pixels, points or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.signature import takes_batches
from detkit.structures.precision import full_precision

__all__ = ["Fields", "ImgMetas", "MatchCost", "costs_of_batch", "product"]

# Tensors by name: (N, A, ...) of the predictions, (N, G, ...) of the objects.
Fields = Mapping[str, Tensor]
# Facts of each image, as data samples carry them.
ImgMetas = Sequence[Mapping[str, Any] | None]


class MatchCost:
    """Base of the costs: one image is a batch of one, and the weight is applied in one place.

    A subclass states :meth:`pairwise`. A cost of one's own may as well be any registered callable with the
    arguments of :meth:`__call__`; see :func:`costs_of_batch`.

    Args:
        weight: What the cost is multiplied by.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Costs (A, G) of one image.

        Args:
            pred_instances: Predictions, with the fields that this cost reads.
            gt_instances: Objects, with the fields that this cost reads.
            img_meta: Facts of the image.
            kwargs: What other costs use of an image; unused.
        """
        return self.cost_batch(batch_of_one(pred_instances), batch_of_one(gt_instances), [img_meta])[0]

    def cost_batch(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None = None) -> Tensor:
        """Costs (N, A, G) of a batch; those of padded objects mean nothing.

        Args:
            predictions: By name, (N, A, ...).
            objects: By name, (N, G, ...), padded.
            img_metas: Facts of the N images.

        Raises:
            ValueError: A field that this cost reads is missing.
        """
        return self.pairwise(predictions, objects, img_metas) * self.weight

    def pairwise(self, predictions: Fields, objects: Fields, img_metas: ImgMetas | None) -> Tensor:
        """Costs (N, A, G) without weight."""
        raise NotImplementedError

    def field(self, fields: Fields, name: str, owner: str) -> Tensor:
        """A field in full precision; ``owner`` says in an error whose it is."""
        if name not in fields:
            given = ", ".join(fields) or "nothing"
            raise ValueError(f"{type(self).__name__}: the {owner} need the field {name!r}, but have {given}")
        return full_precision(fields[name])[0]


def batch_of_one(instances: InstanceData) -> dict[str, Tensor]:
    """The tensors of the instances, those in box types too, with a leading dimension of one."""
    tensors = {name: getattr(value, "tensor", value) for name, value in instances.items()}
    return {name: value.unsqueeze(0) for name, value in tensors.items() if isinstance(value, Tensor)}


def costs_of_batch(
    cost: Callable[..., Tensor], predictions: Fields, objects: Fields, img_metas: ImgMetas | None = None
) -> Tensor:
    """Costs (N, A, G) by :meth:`MatchCost.cost_batch`, or image by image where a user's cost has none.

    Image by image, too, where a subclass of a built-in overrides ``__call__`` alone.

    Raises:
        TypeError: A user's cost is neither a MatchCost nor callable, or returns no tensor.
        ValueError: A user's cost returns another shape than (A, G).
    """
    if isinstance(cost, MatchCost) and takes_batches(cost, "__call__", "cost_batch", "pairwise"):
        return cost.cost_batch(predictions, objects, img_metas)
    name = getattr(cost, "__name__", type(cost).__name__)
    if not callable(cost):
        raise TypeError(f"{name}: a match cost must be callable or a MatchCost")
    batch_size, num_predictions = next(iter(predictions.values())).shape[:2]
    expected = (num_predictions, next(iter(objects.values())).shape[1])
    metas = img_metas or [None] * batch_size
    rows = [
        cost(
            InstanceData(**{name: value[index] for name, value in predictions.items()}),
            InstanceData(**{name: value[index] for name, value in objects.items()}),
            meta,
        )
        for index, meta in enumerate(metas)
    ]
    for row in rows:
        if not isinstance(row, Tensor):
            raise TypeError(f"{name} must return a tensor (A, G) of costs, got {type(row).__name__}")
        if row.shape != expected:
            raise ValueError(f"{name} returned costs of shape {tuple(row.shape)}, expected (A, G) = {expected}")
    return torch.stack(rows)


def product(predictions: Tensor, objects: Tensor) -> Tensor:
    """Sums over P (N, A, G) of predictions (N, A, P) times objects (N, G, P), in float32 under autocast too."""
    with torch.autocast(predictions.device.type, enabled=False):
        return predictions @ objects.transpose(-1, -2)
