"""Predictions and objects of a batch with what it costs to match them, and what to say where they cannot be matched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.task_modules.assigners.assign_result import BACKGROUND, IGNORED
from detkit.task_modules.assigners.bipartite import NoMatchingError, match
from detkit.task_modules.assigners.chunks import chunk_slices
from detkit.task_modules.match_costs.match_cost import Fields, ImgMetas, costs_of_batch

__all__ = ["MatchProblem"]


@dataclass(frozen=True)
class MatchProblem:
    """N images whose predictions are to be matched with their objects.

    Attributes:
        owner: Class name of the assigner, for errors.
        costs: Names and match costs, whose sum counts.
        predictions: Fields by name, (N, A, ...).
        objects: Fields by name, (N, G, ...), ``bboxes`` and ``labels`` among them.
        img_metas: Facts of the images; errors name an image by its ``img_path`` or ``img_id``.
    """

    owner: str
    costs: Sequence[tuple[str, Callable[..., Tensor]]]
    predictions: Fields
    objects: Fields
    img_metas: ImgMetas | None

    def solve(self, valid: Tensor, taking_part: Tensor, most_per_object: int = 1) -> Tensor:
        """:func:`match` by the sum of the costs.

        Raises:
            ValueError: Not as many facts as images, or no assignment has a finite cost; the latter names image,
                prediction and object.
        """
        if self.img_metas is not None and len(self.img_metas) != len(valid):
            raise ValueError(f"{self.owner}: {len(self.img_metas)} img_metas for {len(valid)} images")
        if valid.shape[1] == 0:
            # Before the costs, which may need what an image without objects need not have.
            return torch.where(taking_part, BACKGROUND, IGNORED)
        try:
            return match(self.total_cost(), valid, taking_part, most_per_object)
        except NoMatchingError as error:
            raise ValueError(f"{self.owner}: {self.explain(error.image, error.pair)}") from None

    def total_cost(self) -> Tensor:
        """Sum (N, A, G) of the costs."""
        batch_size, num_predictions = next(iter(self.predictions.values())).shape[:2]
        labels = self.objects["labels"]
        found = [labels.new_zeros(0, num_predictions, labels.shape[1], dtype=torch.float32)]
        # Images whose pairs fit the cache together; elsewhere than on a CPU nearly always all of them.
        for some in chunk_slices(batch_size, num_predictions * labels.shape[1], labels.device, least=1):
            found.append(functools.reduce(torch.add, self.images(some).each_cost()))
        return torch.cat(found)

    def images(self, some: slice) -> MatchProblem:
        """Some of the images."""
        predictions = {name: value[some] for name, value in self.predictions.items()}
        objects = {name: value[some] for name, value in self.objects.items()}
        metas = None if self.img_metas is None else self.img_metas[some]
        return MatchProblem(self.owner, self.costs, predictions, objects, metas)

    def each_cost(self) -> list[Tensor]:
        """The costs, (N, A, G) each."""
        return [costs_of_batch(cost, self.predictions, self.objects, self.img_metas) for _, cost in self.costs]

    def explain(self, image: int, pair: tuple[int, int] | None) -> str:
        """What is wrong with an image and the pair of a prediction and an object, with the values."""
        own = self.images(slice(image, image + 1))
        meta = (own.img_metas[0] if own.img_metas else None) or {}
        name = meta.get("img_path") or meta.get("img_id")
        place = f"image {image} of the batch" + ("" if name is None else f" ({name})")
        if pair is None:
            return f"{place} has infinite costs that leave no assignment"
        row, column = pair
        values = [cost[0, row, column].item() for cost in own.each_cost()]
        terms = ", ".join(f"{name} {value:.4g}" for (name, _), value in zip(self.costs, values, strict=True))
        return f"{place}: the cost of prediction {row} and object {column} is {terms}{own.culprit(row, column)}"

    def culprit(self, row: int, column: int) -> str:
        """Whether the object or the prediction of the first image is to blame."""
        prediction = {name: value[0, row] for name, value in self.predictions.items()}
        label, box = self.objects["labels"][0, column].item(), self.objects["bboxes"][0, column]
        num_classes = len(prediction["scores"]) if "scores" in prediction else None
        if num_classes is not None and not 0 <= label < num_classes:
            return f"; the object has label {label}, but there are {num_classes} classes"
        if not box.isfinite().all():
            return f"; the object's box is {box.tolist()}"
        broken = [name for name, value in prediction.items() if not value.isfinite().all()]
        if broken:
            return f"; {' and '.join(broken)} of the prediction are not finite: the training has diverged"
        return ""
