"""Batch sizes of one process and of all; sharding itself is tested with several processes."""

from __future__ import annotations

import pytest

from detkit.engine.data import sharding


@pytest.fixture
def three_processes(monkeypatch):
    monkeypatch.setattr(sharding, "get_world_size", lambda: 3)


@pytest.mark.usefixtures("three_processes")
def test_the_batch_of_all_is_divided():
    assert sharding.with_own_batch_size({"total_batch_size": 12, "num_workers": 2}) == {
        "batch_size": 4,
        "num_workers": 2,
    }
    # a child config takes back what it inherits
    assert sharding.with_own_batch_size({"total_batch_size": 6, "batch_size": None}) == {"batch_size": 2}
    assert sharding.with_own_batch_size({"total_batch_size": None, "batch_size": 5}) == {"batch_size": 5}


@pytest.mark.usefixtures("three_processes")
@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"total_batch_size": 12, "batch_size": 4}, "are both set; leave one out"),
        ({"total_batch_size": 8}, "8 is not a positive multiple of the 3 processes"),
        ({"total_batch_size": 0}, "0 is not a positive multiple"),
        ({"total_batch_size": "6"}, "'6' is not a positive multiple"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(cfg, message):
    with pytest.raises(ValueError, match=message):
        sharding.with_own_batch_size(cfg)
