"""Pairs of priors and objects, a piece at a time."""

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


def chunk_slices(count: int, pairs_each: int, device: torch.device, least: int | None = None) -> Iterator[slice]:
    """Slices of priors (or of objects), each small enough for its pairs to be held at once.

    Args:
        count: Number of priors, A (or of objects, G).
        pairs_each: What one is paired with: N * G objects (or N * A priors).
        device: Where the pairs are computed.
        least: Least length of a slice; None suits priors.
    """
    budget = CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK
    size = max(LEAST_PRIORS if least is None else least, budget // max(1, pairs_each))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
