"""Several processes: launching, groups, collectives. Numbers are Detectron2's where its own are right."""

from __future__ import annotations

import os

import pytest
from engine import distributed_workers as workers

from detkit.engine import launch


@pytest.fixture(scope="module")
def of_four():
    """What four processes, two machines of two, saw of each collective."""
    return launch(workers.collectives, 4, args=(2,), device_type="cpu", start_method="forkserver")


def test_objects_reach_whom_they_are_for(of_four):
    assert [seen["all_gather"] for seen in of_four] == [[{"r": 0}, {"r": 1}, {"r": 2}, {"r": 3}]] * 4
    assert [seen["gather"] for seen in of_four] == [[0, 1, 2, 3], [], [], []]
    assert [seen["gather to 1"] for seen in of_four] == [[], [0, 1, 2, 3], [], []]
    assert [seen["broadcast"] for seen in of_four] == ["from 2"] * 4


def test_batch_norms_get_the_statistics_of_all_processes(of_four):
    # the values 1 to 9: mean 5, squares of the differences 2 * (16 + 9 + 4 + 1)
    assert [seen["statistics"] for seen in of_four] == [pytest.approx((5.0, 60 / 9))] * 4


def test_launch_of_one_process_stays_in_this_one():
    assert launch(workers.process_id, 1) == os.getpid()
