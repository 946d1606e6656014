"""Mixtures of two normal distributions: against plain Python, batch against one by one, degenerate sets."""

import math

import pytest
import torch
from no_sync import NoSync

from detkit.models.dense_heads.targets.gaussian_mixture import fit_two_gaussians, log_likelihoods


def density(x, share, mean, variance):
    return share * math.exp(-0.5 * (x - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)


def fitted(numbers, tied):
    """The textbook's steps, number by number; variances as mean squares."""
    parts = [(0.5, min(numbers), 1.0), (0.5, max(numbers), 1.0)]
    before = -math.inf
    for _ in range(100):
        rows = [[density(x, *part) for part in parts] for x in numbers]
        weights = [[value / sum(row) for value in row] for row in rows]
        counts = [sum(row[k] for row in weights) + 10 * 2.220446049250313e-16 for k in (0, 1)]
        means = [sum(row[k] * x for row, x in zip(weights, numbers, strict=True)) / counts[k] for k in (0, 1)]
        squares = [sum(row[k] * (x - means[k]) ** 2 for row, x in zip(weights, numbers, strict=True)) for k in (0, 1)]
        variances = [square / count + 1e-6 for square, count in zip(squares, counts, strict=True)]
        if tied:
            variances = [sum(squares) / sum(counts) + 1e-6] * 2
        parts = [(counts[k] / sum(counts), means[k], variances[k]) for k in (0, 1)]
        likelihood = sum(math.log(sum(row)) for row in rows) / len(numbers)
        if abs(likelihood - before) < 1e-3:
            break
        before = likelihood
    return parts


def drawn():
    generator = torch.Generator().manual_seed(0)
    sets = [torch.rand(count, generator=generator) * 3 for count in (2, 3, 9, 20)]
    sets += [torch.cat([torch.randn(8, generator=generator) * 0.1 + 1, torch.randn(12, generator=generator) + 4])]
    valid = torch.zeros(len(sets) + 1, 20, dtype=torch.bool)  # the last is empty
    values = torch.full(valid.shape, torch.nan)
    for row, (mask, numbers) in enumerate(zip(valid, sets, strict=False)):
        mask[torch.randperm(20, generator=generator)[: len(numbers)]] = True
        values[row, mask] = numbers
    return values, valid


@pytest.mark.parametrize("tied", [False, True])
def test_all_sets_at_once_are_fitted_as_each_alone(tied):
    values, valid = drawn()
    fit = fit_two_gaussians(values, valid, tied)
    assert all(torch.isfinite(part).all() for part in fit)
    for row, mask in enumerate(valid[:-1]):
        numbers = values[row, mask]
        expected = torch.tensor(fitted(numbers.double().tolist(), tied), dtype=torch.float64)
        torch.testing.assert_close(torch.stack([part[row] for part in fit], dim=1), expected, rtol=1e-6, atol=1e-9)


def test_two_heaps_are_found():
    numbers = torch.tensor([[0.9, 1.0, 1.1, 5.0, 5.2, 4.8]])
    fit = fit_two_gaussians(numbers, torch.ones_like(numbers, dtype=torch.bool))
    torch.testing.assert_close(fit.means, torch.tensor([[1.0, 5.0]], dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(fit.shares, torch.tensor([[0.5, 0.5]], dtype=torch.float64), rtol=0, atol=1e-3)
    assert log_likelihoods(numbers, fit).argmax(dim=-1).tolist() == [[0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("number", [0.0, 1.0, 1e6])
def test_equal_numbers_have_a_fit(number):
    numbers = torch.full((1, 7), number)
    fit = fit_two_gaussians(numbers, torch.ones_like(numbers, dtype=torch.bool))
    torch.testing.assert_close(fit.means, torch.full((1, 2), number, dtype=torch.float64))
    torch.testing.assert_close(fit.variances, torch.full((1, 2), 1e-6, dtype=torch.float64))
    assert torch.isfinite(log_likelihoods(numbers, fit)).all()


def test_a_fit_waits_for_nothing():
    values, valid = drawn()
    with NoSync():
        fit_two_gaussians(values, valid)
    assert fit_two_gaussians(values[:0], valid[:0]).means.shape == (0, 2)
