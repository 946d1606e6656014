"""How often the true class is among the highest scores, in percent; a number to log, not to train on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Accuracy", "accuracy", "foreground_accuracy"]


def accuracy(
    pred: Tensor, target: Tensor, topk: int | tuple[int, ...] = 1, thresh: float | None = None
) -> Tensor | list[Tensor]:
    """Share of samples whose class is among the ``topk`` highest scores.

    Args:
        pred: Scores (N, C).
        target: Labels (N,); one outside [0, C) is never hit.
        topk: One number, or several in a tuple; each in [1, C].
        thresh: A class counts as predicted only if its score exceeds this.

    Returns:
        Percent (1,), a list of them where ``topk`` is a tuple; 0-d zeros without samples.

    Raises:
        TypeError: ``topk`` is neither a number nor a tuple.
        ValueError: No class or more than C classes are asked for, or the shapes do not fit.
    """
    if not isinstance(topk, (int, tuple)):
        raise TypeError(f"accuracy: topk is a number or a tuple of numbers, got {topk!r}")
    ks = topk if isinstance(topk, tuple) else (topk,)
    if not ks or min(ks) < 1:
        raise ValueError(f"accuracy: topk is one number or several, each >= 1, got {topk!r}")
    if len(pred) == 0:
        result = [pred.new_zeros(()) for _ in ks]
    else:
        if pred.dim() != 2 or target.shape != pred.shape[:1]:
            raise ValueError(
                f"accuracy: scores (N, C) and labels (N,) were expected, got {tuple(pred.shape)} "
                f"and {tuple(target.shape)}"
            )
        if max(ks) > pred.shape[1]:
            raise ValueError(f"accuracy: topk {topk} exceeds the {pred.shape[1]} classes of pred")
        values, labels = pred.topk(max(ks), dim=1)
        hit = labels == target.unsqueeze(1)
        if thresh is not None:
            hit = hit & (values > thresh)
        result = [hit[:, :k].sum().reshape(1) * (100.0 / len(pred)) for k in ks]
    return result if isinstance(topk, tuple) else result[0]


def foreground_accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    """Top-1 accuracy over the samples that have a class.

    Args:
        scores: (N, C).
        labels: (N,), in [0, C); a sample with any other, background or ignored, does not count.

    Returns:
        Percent (1,); 0 without such samples.
    """
    hit = scores.argmax(dim=1) == labels
    counted = (labels >= 0) & (labels < scores.shape[1])
    return 100.0 * (hit.sum() / counted.sum().clamp(min=1)).reshape(1)


class Accuracy(nn.Module):
    """:func:`accuracy` with its options fixed.

    Args:
        topk: See :func:`accuracy`.
        thresh: See :func:`accuracy`.
    """

    def __init__(self, topk: int | tuple[int, ...] = (1,), thresh: float | None = None) -> None:
        super().__init__()
        self.topk = topk
        self.thresh = thresh

    @torch.no_grad()
    def forward(self, pred: Tensor, target: Tensor) -> Tensor | list[Tensor]:
        """Percent of hits; see :func:`accuracy`."""
        return accuracy(pred, target, self.topk, self.thresh)
