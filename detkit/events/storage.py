"""Where a run notes its scalars, images and histograms."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.events.history import History
from detkit.events.pictures import Histogram, Picture, count_values
from detkit.events.unread import Columns, Puts, UnreadScalars, copied
from detkit.signature import nearest, quoted

__all__ = ["EventStorage", "get_event_storage", "has_event_storage"]

_PICTURES = 64  # pictures, and histograms, that may wait for a writer

Number = float | int | np.number


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
        seed: Of the run; None where there is none. With ``step`` it is all that a model may draw numbers by which
            are the same on all processes and after resuming.
    """

    def __init__(self, step: int = 0, length: int = 1000) -> None:
        self.step = step
        self.seed: int | None = None
        self._length = length
        self._prefix = ""
        self._histories: dict[str, History] = {}
        self._smoothing: dict[str, bool] = {}
        self._unread = UnreadScalars(self._keep)
        self._puts: dict[tuple[Any, ...], Puts] = {}
        self._owned: dict[tuple[str, ...], Puts] = {}
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
        """Note several numbers; tensors among them in one operation on their device; see ``put_scalar``."""
        types = set(map(type, values.values()))
        if len(types) != 1 or (Tensor not in types and float not in types):
            return self._put_mixture(values, smoothing, step)
        on_device = Tensor in types
        row: Any = tuple(values.values())
        if on_device:
            row = copied(row)
            if row is None:
                return self._put_one_by_one(values, smoothing, step)
        key = (self._prefix, smoothing, on_device, *values)
        puts = self._puts.get(key)
        if puts is None:
            puts = self._puts[key] = self._unread.new(self._named(values, smoothing))
        return self._unread.add(puts, row, self.step if step is None else step)

    def put_owned(self, values: Mapping[str, Tensor | float], step: int) -> None:
        """Note what a training step gave; for the engine, which calls this at each.

        Args:
            values: Numbers, and scalar tensors in main memory without a graph that nobody will change: they are kept
                as they are.
            step: Step they belong to.
        """
        names = tuple(values)
        puts = self._owned.get(names)
        if puts is None:
            if not all(isinstance(value, (float, int)) or _is_scalar(value) for value in values.values()):
                return self.put_scalars(values, step=step)
            puts = self._owned[names] = self._unread.new(self._named(names, smoothing=True))
        row: Any = tuple(values.values())
        return self._unread.add(puts, row, step)

    def _named(self, names: Iterable[str], smoothing: bool) -> tuple[str, ...]:
        full = tuple(self._prefix + name for name in names)
        for name in full:
            if self._smoothing.get(name, smoothing) is not smoothing:
                raise ValueError(f"{name!r} was noted with smoothing={not smoothing} before, now with {smoothing}")
        self._smoothing.update(dict.fromkeys(full, smoothing))
        return full

    def _put_mixture(self, values: Mapping[str, Tensor | Number], smoothing: bool, step: int | None) -> None:
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[name] = _plain(self._prefix + name, value)
            elif isinstance(value, (float, int, np.number)):
                numbers[name] = float(value)
            else:
                raise TypeError(f"{self._prefix + name!r}: a number or a tensor was expected, got {value!r}")
        for part in (tensors, numbers):
            if part:
                self.put_scalars(part, smoothing, step)

    def _put_one_by_one(self, values: Mapping[str, Any], smoothing: bool, step: int | None) -> None:
        """Tensors on several devices, or of several shapes."""
        for name, value in values.items():
            if value.numel() != 1:
                full, shape = self._prefix + name, tuple(value.shape)
                raise ValueError(f"{full!r}: a tensor of one element was expected, got the shape {shape}")
        for name, value in values.items():
            self.put_scalars({name: value.reshape(()).clone()}, smoothing, step)

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
            hint = f"did you mean {quoted(nearest(name, histories))}?" if histories else "nothing was"
            raise KeyError(f"no scalar {name!r} was noted; {hint}")
        return histories[name]

    def histories(self) -> Mapping[str, History]:
        """All histories by name, after one transfer of what was still on the device."""
        self._unread.read()
        return self._histories

    def _keep(self, columns: Columns) -> None:
        for name, (values, steps) in columns.items():
            if name not in self._histories:
                self._histories[name] = History(self._length, self._smoothing[name])
            self._histories[name].extend(values, steps)

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
        """Sums by name of what is smoothed, in plain types: what the means of a resumed run need.

        Waits for the device once.
        """
        return {name: history.state_dict() for name, history in self.histories().items() if history.smoothing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums that :meth:`state_dict` gave; forget what was noted here before."""
        self._unread, self._puts, self._owned = UnreadScalars(self._keep), {}, {}
        self._histories = {name: History(self._length) for name in state}
        for name, history in self._histories.items():
            history.load_state_dict(state[name])
        self._smoothing = dict.fromkeys(state, True)

    def _with_values(self) -> list[tuple[str, History]]:
        return [(name, history) for name, history in self.histories().items() if len(history)]

    def __enter__(self) -> EventStorage:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())


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


def _plain(name: str, value: Any) -> Tensor:
    """``value`` as a tensor of torch's own class; one that is spread over processes is put together by all of them."""
    value = value.detach()
    if hasattr(value, "full_tensor"):  # a DTensor, as a loss on sharded weights is
        value = value.full_tensor()
    value = value if type(value) is Tensor else value.as_subclass(Tensor)
    if type(value) is not Tensor:
        raise TypeError(f"{name!r}: a plain tensor was expected, got {type(value).__name__}")
    return value


def _is_scalar(value: object) -> bool:
    return type(value) is Tensor and value.ndim == 0 and value.device.type == "cpu"


_nowhere = _NoStorage()
_current: ContextVar[EventStorage] = ContextVar("detkit_event_storage", default=_nowhere)


def get_event_storage() -> EventStorage:
    """The innermost storage in use, or, outside of a run, one that forgets everything."""
    return _current.get()


def has_event_storage() -> bool:
    """Whether anything that is noted now is kept."""
    return _current.get() is not _nowhere
