"""Where a run notes its scalars, images and histograms."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.events.history import History
from detkit.events.pictures import Histogram, Picture, count_values
from detkit.signature import nearest

__all__ = ["EventStorage", "get_event_storage", "has_event_storage"]

_UNREAD = 1000  # notes that may wait on the device
_PICTURES = 64  # pictures, and histograms, that may wait for a writer

Number = float | int | np.number


class _Note(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: Tensor | tuple[float, ...]  # (K,), where the model is, or on the host


class EventStorage:
    """Scalars, images and histograms by name and step; nothing in it grows with the number of steps.

    As a context it is what :func:`get_event_storage` gives. One inside another keeps what is noted meanwhile for
    itself, and whoever opened it may throw that away::

        with EventStorage(step) as inner:
            ...

    Args:
        step: Iterations done, the current one included; notes belong to it unless they say another.
        length: Values kept per scalar.

    Attributes:
        step: As given; the run moves it on.
    """

    def __init__(self, step: int = 0, length: int = 1000) -> None:
        self.step = step
        self._length = length
        self._prefix = ""
        self._histories: dict[str, History] = {}
        self._smoothing: dict[str, bool] = {}
        self._notes: list[_Note] = []
        self._reading: list[tuple[list[_Note], Tensor, torch.cuda.Event | None]] = []
        self._images: deque[Picture] = deque(maxlen=_PICTURES)
        self._histograms: deque[tuple[str, Tensor, int]] = deque(maxlen=_PICTURES)
        self._tokens: list[Token[EventStorage]] = []

    def put_scalar(self, name: str, value: Tensor | Number, smoothing: bool = True, step: int | None = None) -> None:
        """Note a number.

        Args:
            name: What it is; a name scope is put before it. Writers show names that begin with ``[metric]`` in
                the terminal whatever they are.
            value: A number, or a tensor of one element; it is copied without waiting for it.
            smoothing: Whether writers may show a median or mean; the same for all values of a name.
            step: Step it belongs to; None for the current one.

        Raises:
            TypeError: ``value`` is neither.
            ValueError: A tensor of several elements, or ``smoothing`` is not what it was before.
        """
        self.put_scalars({name: value}, smoothing, step)

    def put_scalars(
        self, values: Mapping[str, Tensor | Number], smoothing: bool = True, step: int | None = None
    ) -> None:
        """Note several numbers; with tensors among them, in one operation on their device; see ``put_scalar``."""
        step = self.step if step is None else step
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        known = self._smoothing
        for key, value in values.items():
            name = self._prefix + key if self._prefix else key
            if known.setdefault(name, smoothing) is not smoothing:
                raise ValueError(f"{name!r} was noted with smoothing={known[name]} before, now with {smoothing}")
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, (float, int, np.number)):
                numbers[name] = float(value)
            else:
                raise TypeError(f"{name!r}: a number or a tensor of one element was expected, got {value!r}")
        if tensors:
            self._notes += _copies(step, tensors)
        if numbers:
            self._notes.append(_Note(step, tuple(numbers), tuple(numbers.values())))
        if len(self._notes) >= _UNREAD:
            self._start_reading()

    def put_image(self, name: str, image: Tensor | np.ndarray, step: int | None = None) -> None:
        """Note a picture; the last 64 wait for a writer.

        Args:
            name: What it shows.
            image: (C, H, W), C 1 or 3, uint8 or float in [0, 1].
            step: Step it belongs to; None for the current one.

        Raises:
            ValueError: Another shape.
        """
        pixels = image.detach().clone() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
            raise ValueError(f"put_image({name!r}): (1 or 3, H, W) was expected, got {tuple(pixels.shape)}")
        self._images.append(Picture(self._prefix + name, pixels, self.step if step is None else step))

    def put_histogram(self, name: str, values: Tensor, bins: int = 100, step: int | None = None) -> None:
        """Note how values are distributed; counted on their device, without waiting. The last 64 wait for a writer.

        Args:
            name: What they are.
            values: Any shape, at least one element; those not finite are left out.
            bins: Bins of equal width between the smallest and the largest.
            step: Step they belong to; None for the current one.

        Raises:
            ValueError: No values, or no bins.
        """
        if not values.numel() or bins < 1:
            raise ValueError(f"put_histogram({name!r}): nothing to count in {values.numel()} values and {bins} bins")
        self._histograms.append((self._prefix + name, count_values(values, bins), self.step if step is None else step))

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put ``name/`` before all names noted inside; scopes nest, and end with an exception too."""
        before = self._prefix
        self._prefix = f"{before}{name.rstrip('/')}/"
        try:
            yield
        finally:
            self._prefix = before

    def history(self, name: str) -> History:
        """All that is kept of one scalar.

        Raises:
            KeyError: Nothing was noted under ``name``.
        """
        histories = self.histories()
        if name not in histories:
            known = nearest(name, histories) if histories else "nothing yet"
            raise KeyError(f"no scalar {name!r} was noted; did you mean {known!r}?")
        return histories[name]

    def histories(self) -> Mapping[str, History]:
        """All histories by name, after one transfer of what was still on the device."""
        notes, self._notes = self._notes, []
        while self._reading:
            self._finish_reading()
        if notes:
            self._keep(notes, _joined(notes).tolist())
        return self._histories

    def latest(self) -> dict[str, tuple[float, int]]:
        """Last value and its step, by name."""
        return {name: history.latest() for name, history in self._with_values()}

    def latest_smoothed(self, window: int = 20) -> dict[str, tuple[float, int]]:
        """Like ``latest``, but medians over the last ``window`` steps where smoothing is allowed."""
        smoothed = {}
        for name, history in self._with_values():
            value, step = history.latest()
            samples = history.samples_since(self.step - window) if history.smoothing else 0
            smoothed[name] = (history.median(samples) if samples else value, step)
        return smoothed

    def count_samples(self, name: str, window: int) -> int:
        """How many values of ``name`` belong to the last ``window`` steps."""
        return self.history(name).samples_since(self.step - window)

    def take_images(self) -> list[Picture]:
        """Pictures since the last call."""
        images, self._images = list(self._images), deque(maxlen=_PICTURES)
        return images

    def take_histograms(self) -> list[Histogram]:
        """Histograms since the last call; waits for the device."""
        taken, self._histograms = list(self._histograms), deque(maxlen=_PICTURES)
        histograms = []
        for name, counted, step in taken:
            low, high, total, squares, *counts = counted.tolist()
            histograms.append(Histogram(name, counts, low, high, total, squares, step))
        return histograms

    def state_dict(self) -> dict[str, Any]:
        """Sums by name, in plain types: what means of a resumed run need. Waits for the device once."""
        return {name: history.state_dict() for name, history in self.histories().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums that :meth:`state_dict` gave; forget what was noted here before."""
        self._notes, self._reading = [], []
        self._histories = {name: History(self._length) for name in state}
        for name, history in self._histories.items():
            history.load_state_dict(state[name])
        self._smoothing = {name: history.smoothing for name, history in self._histories.items()}

    def _with_values(self) -> list[tuple[str, History]]:
        return [(name, history) for name, history in self.histories().items() if len(history)]

    def __enter__(self) -> EventStorage:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())

    def _start_reading(self) -> None:
        """Bring the notes to the host while the run goes on; so few wait, however rarely somebody reads."""
        while self._reading:
            self._finish_reading()  # of a thousand notes ago
        notes, self._notes = self._notes, []
        values = _joined(notes)
        event = None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values, event = host.copy_(values, non_blocking=True), torch.cuda.Event()
            event.record()
        self._reading.append((notes, values, event))

    def _finish_reading(self) -> None:
        notes, values, event = self._reading.pop(0)
        if event is not None:
            event.synchronize()
        self._keep(notes, values.tolist())

    def _keep(self, notes: list[_Note], fetched: list[float]) -> None:
        """Sort values into the histories; ``fetched`` are those of all tensors in the order of ``_joined``."""
        columns: dict[str, tuple[list[float], list[int]]] = {}
        place = 0
        for step, names, values in notes:
            if isinstance(values, Tensor):
                values = tuple(fetched[place : place + len(names)])
                place += len(names)
            for name, value in zip(names, values, strict=True):
                if name not in columns:
                    columns[name] = ([], [])
                columns[name][0].append(value)
                columns[name][1].append(step)
        for name, (numbers, steps) in columns.items():
            if name not in self._histories:
                self._histories[name] = History(self._length, self._smoothing[name])
            self._histories[name].extend(numbers, steps)


class _NoStorage(EventStorage):
    """Forgets everything; for code that runs by itself."""

    def put_scalars(
        self, values: Mapping[str, Tensor | Number], smoothing: bool = True, step: int | None = None
    ) -> None:
        """Forget."""

    def put_image(self, name: str, image: Tensor | np.ndarray, step: int | None = None) -> None:
        """Forget."""

    def put_histogram(self, name: str, values: Tensor, bins: int = 100, step: int | None = None) -> None:
        """Forget."""


_nowhere = _NoStorage()
_current: ContextVar[EventStorage] = ContextVar("detkit_event_storage", default=_nowhere)


def get_event_storage() -> EventStorage:
    """The innermost storage in use, or, outside of a run, one that forgets everything."""
    return _current.get()


def has_event_storage() -> bool:
    """Whether anything that is noted now is kept."""
    return _current.get() is not _nowhere


def _copies(step: int, tensors: dict[str, Tensor]) -> list[_Note]:
    """Notes of tensors: a copy on the device, as they may change before they are read, and without their graph."""
    scalars = list(tensors.values())
    try:
        stacked = torch.stack(scalars)
    except RuntimeError:
        stacked = None  # several devices, or shapes
    if stacked is not None and stacked.ndim == 1:
        return [_Note(step, tuple(tensors), stacked.detach())]
    for name, value in tensors.items():
        if value.numel() != 1:
            raise ValueError(f"{name!r}: a tensor of one element was expected, got the shape {tuple(value.shape)}")
    return [_Note(step, (name,), value.detach().reshape(1).clone()) for name, value in tensors.items()]


def _joined(notes: list[_Note]) -> Tensor:
    """All tensors' values in one, in order: one transfer, from one device at least.

    Values of one type stay exact; a mixture becomes float64.
    """
    tensors = [note.values for note in notes if isinstance(note.values, Tensor)]
    if not tensors:
        return torch.empty(0)
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        device = next((device for device, _ in kinds if device.type != "cpu"), torch.device("cpu"))
        tensors = [tensor.to(device, torch.float64, non_blocking=True) for tensor in tensors]
    return torch.cat(tensors)
