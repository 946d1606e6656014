"""Mixtures of two normal distributions over single numbers, for many sets of numbers at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["COVARIANCE_TYPES", "Mixture", "fit_two_gaussians", "log_likelihoods"]

# Names of scikit-learn. Of single numbers the first three are one: each component has a variance of its own.
COVARIANCE_TYPES = ("full", "diag", "spherical", "tied")
# scikit-learn's defaults: when to stop, and what keeps a variance and a share above 0.
TOLERANCE = 1e-3
MAX_ITERATIONS = 100
LEAST_VARIANCE = 1e-6
LEAST_COUNT = 10 * torch.finfo(torch.float64).eps


class Mixture(NamedTuple):
    """Two components (..., 2) of each set.

    Attributes:
        shares: Of the numbers, summing to 1.
        means: Of the components.
        variances: Of the components.
    """

    shares: Tensor
    means: Tensor
    variances: Tensor


def fit_two_gaussians(values: Tensor, valid: Tensor, tied: bool = False) -> Mixture:
    """Expectation maximisation from the least and the greatest number of each set, without waiting for the device.

    The steps are those of scikit-learn's ``GaussianMixture``: equal shares and unit variances at the start, and an
    end when the mean log likelihood moves by less than 1e-3, or after 100 steps. A set that has come to its end stays
    as it is while others go on. A variance is taken around the mean, so it is never negative, and a set whose numbers
    are all equal has a fit, where scikit-learn fails.

    Args:
        values: (S, K).
        valid: (S, K) bool, which of them there are; a set may have none.
        tied: One variance for both components.

    Returns:
        Float64; of an empty set without meaning, but finite.
    """
    counted = valid.unsqueeze(-1).double()  # (S, K, 1)
    x = torch.where(valid, values, 0.0).double().unsqueeze(-1)
    count = counted.sum(dim=1).clamp(min=1)  # (S, 1)
    some = valid.any(dim=1)
    low = torch.where(some, torch.where(valid, values, torch.inf).amin(dim=1), 0.0)
    high = torch.where(some, torch.where(valid, values, -torch.inf).amax(dim=1), 0.0)
    means = torch.stack([low, high], dim=1).double()
    fit = Mixture(torch.full_like(means, 0.5), means, torch.ones_like(means))
    before = torch.full_like(count, -torch.inf)
    done = torch.zeros_like(count, dtype=torch.bool)
    for _ in range(MAX_ITERATIONS):
        parts = _log_parts(x, fit)  # (S, K, 2)
        total = parts.logsumexp(dim=-1, keepdim=True)
        weight = (parts - total).exp() * counted
        number = weight.sum(dim=1) + LEAST_COUNT  # (S, 2)
        means = (weight * x).sum(dim=1) / number
        squares = (weight * (x - means.unsqueeze(1)).square()).sum(dim=1)
        if tied:
            squares = squares.sum(dim=1, keepdim=True).expand_as(squares)
            variances = squares / number.sum(dim=1, keepdim=True) + LEAST_VARIANCE
        else:
            variances = squares / number + LEAST_VARIANCE
        new = Mixture(number / number.sum(dim=1, keepdim=True), means, variances)
        fit = Mixture(*(torch.where(done, old, one) for old, one in zip(fit, new, strict=True)))
        likelihood = (total * counted).sum(dim=1) / count
        done = done | ((likelihood - before).abs() < TOLERANCE)
        before = likelihood
    return fit


def log_likelihoods(values: Tensor, fit: Mixture) -> Tensor:
    """Logarithm of share times density (S, K, 2) of ``values`` (S, K) under each component, float64."""
    return _log_parts(values.double().unsqueeze(-1), fit)


def _log_parts(x: Tensor, fit: Mixture) -> Tensor:
    """The same of ``x`` (S, K, 1) float64."""
    shares, means, variances = (part.unsqueeze(1) for part in fit)  # (S, 1, 2)
    return shares.log() - 0.5 * ((x - means).square() / variances + variances.log() + math.log(2 * math.pi))
