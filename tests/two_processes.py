"""A run of two processes, in one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Turns:
    """Stands for torch.distributed: the processes take turns. First they say what they have, then they hear the sum."""

    def __init__(self) -> None:
        self.said: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.rank = 0
        self.place: int | None = None

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, value: Tensor) -> None:
        if self.place is None:
            self.said[self.rank].append(value.clone())
        else:
            value.copy_(sum(said[self.place] for said in self.said))
            self.place += 1


def losses_of_two_processes(monkeypatch: Any, losses_of: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What ``losses_of(rank)`` returns in each of two processes.

    It is called twice for each: what it sums over the processes must not depend on such sums.
    """
    both = _Turns()
    monkeypatch.setattr("detkit.losses.reduction.distributed", both)
    alone: list[dict[str, Tensor]] = []
    for _ in ("say", "hear"):
        alone = []
        for both.rank in (0, 1):
            alone.append(losses_of(both.rank))
            both.place = None if both.place is None else 0
        both.place = 0
    return alone


def assert_mean_of_both(alone: list[dict[str, Tensor]], together: dict[str, Tensor], rtol: float, atol: float) -> None:
    """The losses of one process with all images are the mean of those of two with their own."""
    for name, value in together.items():
        if "loss" in name:
            torch.testing.assert_close((alone[0][name] + alone[1][name]) / 2, value, rtol=rtol, atol=atol)
