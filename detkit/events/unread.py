"""Scalars that were noted and not read yet: on their device, however long nobody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Columns", "Puts", "UnreadScalars", "copied"]

_LIMIT = 1000  # notes that may wait on the device

Columns = dict[str, tuple[list[float], Sequence[int] | NDArray[np.int64]]]


class Puts:
    """Values that are always noted together.

    Attributes:
        names: Their names.
        orders: For each time they were noted, when that was among all notes.
        steps: The step.
        rows: The values: (K,) tensors where the model is, or tuples of numbers and of scalar tensors in main memory.
    """

    __slots__ = ("names", "orders", "rows", "steps")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.orders: list[int] = []
        self.steps: Any = []
        self.rows: list[Any] = []

    def take(self) -> Puts:
        """What is here; nothing is left."""
        taken = Puts(self.names)
        # Every name's history copies the steps; from an array that is quick.
        taken.orders, taken.steps, taken.rows = self.orders, np.array(self.steps, dtype=np.int64), self.rows
        self.orders, self.steps, self.rows = [], [], []
        return taken


class _Reading(NamedTuple):
    puts: list[Puts]
    values: Tensor
    arrived: torch.cuda.Event | None


class UnreadScalars:
    """Collects what is noted, and reads all of it in one transfer.

    If nobody asks for a thousand notes, they travel to the host while the run goes on, and nothing waits for that.

    Args:
        keep: Called with values and steps by name, in the order they were noted, once they are read.
    """

    def __init__(self, keep: Callable[[Columns], None]) -> None:
        self._keep = keep
        self._all: list[Puts] = []
        self._count = self._read_until = 0  # notes
        self._reading: _Reading | None = None

    def new(self, names: tuple[str, ...]) -> Puts:
        """A place for values that are noted together."""
        puts = Puts(names)
        self._all.append(puts)
        return puts

    def add(self, puts: Puts, row: Tensor | tuple[float, ...], step: int) -> None:
        """Keep the values of one note."""
        self._count += 1
        puts.orders.append(self._count)
        puts.steps.append(step)
        puts.rows.append(row)
        if self._count - self._read_until >= _LIMIT:
            self._start_reading()

    def read(self) -> None:
        """Have everything kept that was noted; waits for the device."""
        self._finish_reading()
        puts = self._take()
        if puts:
            self._keep(_columns(puts, _joined(puts).tolist()))

    def _take(self) -> list[Puts]:
        self._read_until = self._count
        return [puts.take() for puts in self._all if puts.orders]

    def _start_reading(self) -> None:
        self._finish_reading()  # it began a thousand notes ago
        puts = self._take()
        values = _joined(puts)
        arrived = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values, arrived = host.copy_(values, non_blocking=True), torch.cuda.Event()
            arrived.record()
        for one in puts:
            if _on_device(one):
                one.rows = one.rows[:1]  # free the others
        self._reading = _Reading(puts, values, arrived)

    def _finish_reading(self) -> None:
        if self._reading is None:
            return
        puts, values, arrived = self._reading
        self._reading = None
        if arrived is not None:
            arrived.synchronize()
        self._keep(_columns(puts, values.tolist()))


def copied(tensors: tuple[Tensor, ...]) -> Tensor | None:
    """(K,) values of scalars, where they are, without their graph; a copy, as they may change before they are read.

    None if they are of several devices or shapes.
    """
    try:
        row = torch.stack(tensors)
    except RuntimeError:
        return None
    if row.ndim != 1:
        return None
    return row.detach() if row.requires_grad else row


def _on_device(puts: Puts) -> bool:
    return isinstance(puts.rows[0], Tensor)


def _numbers(rows: list[tuple[Any, ...]]) -> Iterator[list[float]]:
    """The columns of rows in main memory, where reading one by one costs less than a stack of them."""
    for column in zip(*rows, strict=True):
        yield [value.item() if isinstance(value, Tensor) else float(value) for value in column]


def _joined(all_puts: list[Puts]) -> Tensor:
    """All tensors' values in one, in order. Values of one type stay exact; a mixture is float64."""
    rows = [torch.cat(puts.rows) for puts in all_puts if _on_device(puts)]
    if not rows:
        return torch.empty(0)
    if len({(row.device, row.dtype) for row in rows}) > 1:
        device = next((row.device for row in rows if row.device.type != "cpu"), rows[0].device)
        rows = [row.to(device, torch.float64, non_blocking=True) for row in rows]
    return torch.cat(rows)


def _columns(all_puts: list[Puts], fetched: list[float]) -> Columns:
    """Sort values by name; ``fetched`` are those of all tensors in the order of ``_joined``."""
    parts: dict[str, list[tuple[list[float], Puts]]] = {}
    place = 0
    for puts in all_puts:
        width = len(puts.names)
        if _on_device(puts):
            end = place + width * len(puts.orders)
            values = [fetched[place + index : end : width] for index in range(width)]
            place = end
        else:
            values = list(_numbers(puts.rows))
        for name, column in zip(puts.names, values, strict=True):
            parts.setdefault(name, []).append((column, puts))
    return {name: _in_order(found) for name, found in parts.items()}


def _in_order(parts: list[tuple[list[float], Puts]]) -> tuple[list[float], Sequence[int] | NDArray[np.int64]]:
    if len(parts) == 1:
        column, puts = parts[0]
        return column, puts.steps
    # Noted beside different names: back to the order of the notes.
    entries = sorted(entry for column, puts in parts for entry in zip(puts.orders, column, puts.steps, strict=True))
    return [value for _, value, _ in entries], [step for _, _, step in entries]
