"""Associative embedding of corner pairs: CornerNet, Law & Deng, section 3.3, https://arxiv.org/abs/1808.01244."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkit.losses.reduction import check_number
from detkit.ops.upload import upload
from detkit.registry import MODELS
from detkit.structures.precision import full_precision

__all__ = ["AssociativeEmbeddingLoss", "associative_embedding_loss"]

# Per image, per object: ((y, x) of the top left corner, (y, x) of the bottom right one).
Match = Sequence[Sequence[Sequence[Sequence[int]]]]


def associative_embedding_loss(
    first: Tensor, second: Tensor, valid: Tensor, margin: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Pull the two embeddings of an object together (eq. 4), push those of an image's objects apart (eq. 5).

    Args:
        first: Embedding of the top left corners (B, K), K objects per image.
        second: Embedding of the bottom right corners (B, K).
        valid: (B, K) 1 where there is an object, else 0.
        margin: Distance from which objects do not push each other.

    Returns:
        Pull and push, each (B,); 0 for images without objects, or without a second one.
    """
    mean = (first + second) / 2
    num = valid.sum(dim=1)
    pull = (((first - mean).square() + (second - mean).square()) * valid).sum(dim=1) / num.clamp(min=1)
    pair = valid[:, :, None] * valid[:, None, :]
    pair = pair - torch.diag_embed(valid)
    distance = (mean[:, :, None] - mean[:, None, :]).abs()
    push = ((margin - distance).clamp(min=0) * pair).sum(dim=(1, 2)) / (num * (num - 1)).clamp(min=1)
    return pull, push


@MODELS.register_module()
class AssociativeEmbeddingLoss(nn.Module):
    """Sum over the images of :func:`associative_embedding_loss`.

    Args:
        pull_weight: Factor on the pull.
        push_weight: Factor on the push.

    Raises:
        TypeError: A number was expected.
    """

    learns = "pairs of corners"

    def __init__(self, pull_weight: float = 0.25, push_weight: float = 0.25) -> None:
        super().__init__()
        for name, value in (("pull_weight", pull_weight), ("push_weight", push_weight)):
            check_number(type(self).__name__, name, value)
        self.pull_weight = pull_weight
        self.push_weight = push_weight

    def forward(self, pred: Tensor, target: Tensor, match: Match) -> tuple[Tensor, Tensor]:
        """Pull and push, each 0-d.

        Args:
            pred: Embedding of top left corners (B, C, H, W); each of C channels counts as objects of its own.
            target: Embedding of bottom right corners, same shape.
            match: Per image, per object, ``[[y, x], [y, x]]``: the cells of its two corners.

        Raises:
            ValueError: Shapes that do not fit, an object without two corners, or a cell outside the map.
        """
        if pred.dim() != 4 or pred.shape != target.shape or len(match) != len(pred):
            raise ValueError(
                f"AssociativeEmbeddingLoss: pred {tuple(pred.shape)}, target {tuple(target.shape)} and matches of "
                f"{len(match)} images; expected (B, C, H, W) twice, and B"
            )
        pred, target = full_precision(pred, target)
        cells, valid = _pad(match, *pred.shape[2:])
        cells, valid = upload(cells, pred.device), upload(valid, pred.device).to(pred.dtype)
        channels = pred.shape[1]
        first, second = (
            maps.flatten(2).gather(2, index[:, None].expand(-1, channels, -1)).flatten(1)
            for maps, index in zip((pred, target), cells.unbind(-1), strict=True)
        )
        pull, push = associative_embedding_loss(first, second, valid.repeat(1, channels))
        return self.pull_weight * pull.sum(), self.push_weight * push.sum()


def _pad(match: Match, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flat cells (B, K, 2) of the two corners of K objects per image, and which are objects (B, K)."""
    most = max((len(objects) for objects in match), default=0)
    cells, valid = [], []
    for image, objects in enumerate(match):
        for pair in objects:
            _check_corners(pair, image, height, width)
        padding = most - len(objects)
        cells.append([[y * width + x for y, x in pair] for pair in objects] + [[0, 0]] * padding)
        valid.append([True] * len(objects) + [False] * padding)
    shape = (len(match), most)
    return torch.tensor(cells, dtype=torch.int64).view(*shape, 2), torch.tensor(valid, dtype=torch.bool).view(shape)


def _check_corners(pair: Sequence[Sequence[int]], image: int, height: int, width: int) -> None:
    name = f"AssociativeEmbeddingLoss: image {image}"
    if len(pair) != 2 or any(len(corner) != 2 for corner in pair):
        raise ValueError(f"{name} has an object {pair}; expected its two corners [[y, x], [y, x]]")
    for y, x in pair:
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"{name} has a corner at (y, x) = ({y}, {x}), outside a map of {height} x {width}")
