"""The kept values of a scalar against numbers that one can check in the head."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkit.events import History


@pytest.mark.parametrize("length", [1, 7, 100, 999])
@pytest.mark.parametrize("piece", [1, 3, 250])
def test_a_full_history_keeps_the_last_values_and_the_mean_of_all(length, piece):
    """fvcore's buffer: L < 1000 values kept of 1000, the mean over all of them."""
    history = History(length)
    for begin in range(0, 1000, piece):
        steps = list(range(begin, min(begin + piece, 1000)))
        history.extend([2.0 * step for step in steps], steps)
    assert history.samples == [(step, 2.0 * step) for step in range(1000 - length, 1000)]
    assert len(history) == length
    assert history.count == 1000
    assert history.latest() == (1998.0, 999)
    assert history.global_mean() == 999.0
    kept = [2.0 * step for step in range(1000 - min(100, length), 1000)]
    assert history.median(100) == np.median(kept)
    assert history.mean(100) == pytest.approx(np.mean(kept))
    assert history.samples_since(989) == min(10, length)


def test_medians_of_long_and_short_windows_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=1500)
    history = History(1000)
    history.extend(values.tolist(), list(range(1500)))
    for window in (1, 2, 49, 50, 51, 52, 999, 1000, 5000):
        assert history.median(window) == np.median(values[-min(window, 1000) :])


def test_values_that_are_not_finite_stay_out_of_the_mean_of_all_and_of_medians():
    history = History()
    history.extend([1.0, math.nan, 3.0, math.inf], [1, 2, 3, 4])
    assert history.median(3) == math.inf  # of 3 and inf
    assert history.global_mean() == 2.0
    history.update(2.0, 5)
    assert history.global_mean() == 2.0
    assert math.isnan(history.take().total)
    history.update(5.0, 6)
    assert history.take() == (5.0, 1, 6)  # one bad value spoils one line, not all that come after it


def test_taking_gives_the_sum_once_or_the_latest_value():
    smoothed, latest = History(), History(smoothing=False)
    for history in (smoothed, latest):
        history.extend([1.0, 2.0, 6.0], [1, 2, 3])
    assert smoothed.take() == (9.0, 3, 3)
    assert latest.take() == (6.0, 1, 3)
    assert smoothed.take() is latest.take() is None
    smoothed.update(4.0, 4)
    assert smoothed.take() == (4.0, 1, 4)


def test_only_sums_are_saved():
    history = History(3)
    history.extend([1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4])
    history.take()
    history.update(10.0, 5)
    resumed = History(3)
    resumed.load_state_dict(history.state_dict())
    assert len(resumed) == 0
    assert resumed.count == 5
    assert resumed.global_mean() == history.global_mean() == 4.0
    resumed.update(2.0, 6)
    assert resumed.take() == (12.0, 2, 6)
    assert resumed.samples == [(6, 2.0)]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        History(0)
    with pytest.raises(ValueError, match="history is empty"):
        History().latest()
    with pytest.raises(ValueError, match="at least 1 value, got 0"):
        History().median(0)
