"""Priors times objects, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["chunk_slices"]

# Pairs of priors and objects at a time. On a CPU the few temporaries of a piece stay in the cache (2^18 floats
# are 1 MiB); elsewhere a piece is large enough to fill the device and, at about six temporaries, takes 400 MiB.
CPU_CHUNK = 1 << 18
DEVICE_CHUNK = 1 << 24
# Below this many priors at a time the calls would cost more than the numbers.
LEAST_PRIORS = 128


def chunk_slices(num_priors: int, pairs_per_prior: int, device: torch.device) -> Iterator[slice]:
    """Slices of the priors, each small enough for its pairs to be held at once.

    Args:
        num_priors: A.
        pairs_per_prior: What a prior is paired with: N * G objects.
        device: Where the pairs are computed.
    """
    budget = CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK
    size = max(LEAST_PRIORS, budget // max(1, pairs_per_prior))
    for start in range(0, num_priors, size):
        yield slice(start, min(start + size, num_priors))
