"""Calls that a thread makes one after the other while the run goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["BackgroundCalls"]


class BackgroundCalls:
    """Makes calls in their order in a thread of its own; no call and no error is lost.

    Args:
        limit: Calls that may wait; the next one waits for the oldest.
    """

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._thread = ThreadPoolExecutor(1, "detkit-writer")
        self._calls: deque[Future[Any]] = deque()

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        """Make this call later.

        Raises:
            Exception: That of an earlier call.
        """
        while self._calls and (self._calls[0].done() or len(self._calls) >= self._limit):
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(function, *args))

    def wait(self) -> None:
        """Wait until all calls were made.

        Raises:
            Exception: That of a call, the first one's if several failed.
        """
        errors = [error for error in (call.exception() for call in self._calls) if error is not None]
        self._calls.clear()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """Make all calls and end the thread; raises as ``wait`` does."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
