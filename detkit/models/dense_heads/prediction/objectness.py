"""How a class score and an objectness make one score, of logits and without overflow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["geometric_mean", "geometric_mean_logit", "implicit_objectness"]

# A probability is kept this far from 0 and 1 before its logit is taken.
EPS = 1e-5


def geometric_mean(logits: Tensor, objectness: Tensor) -> Tensor:
    """``sqrt(sigmoid(logits) * sigmoid(objectness))`` in float32, (...); with a gradient where both are tiny too."""
    return (0.5 * (F.logsigmoid(logits.float()) + F.logsigmoid(objectness.float()))).exp()


def geometric_mean_logit(logits: Tensor, objectness: Tensor) -> Tensor:
    """Logit (...) of :func:`geometric_mean`, finite."""
    prob = geometric_mean(logits, objectness)
    return (prob.clamp(min=EPS) / (1 - prob).clamp(min=EPS)).log()


def implicit_objectness(logits: Tensor, objectness: Tensor) -> Tensor:
    """Logit (...) of ``sigmoid(logits) * sigmoid(objectness)``, in float32.

    With c and o the exponentials of both logits the product is ``co / ((1 + c) (1 + o))``, and its logit
    ``log(co / (1 + c + o))``: the objectness needs no loss of its own (YOLOF, https://arxiv.org/abs/2103.09460).
    """
    logits, objectness = logits.float(), objectness.float()
    # In logarithms of exponentials, so that a sure object leaves the score to its class however sure it is.
    return logits - torch.logaddexp(F.softplus(-objectness), logits - objectness)
