import math

import pytest
import torch

from detkit.task_modules.assigners.bipartite import NoMatchingError, match


def solve(table, columns=None, rows=None, most_per_object=1):
    costs = torch.tensor([table], dtype=torch.float32)
    valid, taking_part = (
        torch.ones(1, costs.shape[2], dtype=torch.bool),
        torch.ones(1, costs.shape[1], dtype=torch.bool),
    )
    if columns is not None:
        valid[0] = torch.tensor(columns)
    if rows is not None:
        taking_part[0] = torch.tensor(rows)
    return match(costs, valid, taking_part, most_per_object)[0].tolist()


def test_the_sum_counts_not_the_best_of_each():
    # 1 + 9 against 2 + 1.5
    assert solve([[1, 2], [1.5, 9]]) == [2, 1]
    assert solve([[1, 2], [1.5, 9], [0.5, 8]]) == [2, 0, 1]


def test_more_objects_than_predictions():
    assert solve([[5, 3, 4]]) == [2]


def test_padding_and_absent_predictions_do_not_count():
    assert solve([[0, 5], [0, 6]], columns=[False, True]) == [2, 0]
    assert solve([[0, 5], [1, 6], [2, 9]], rows=[False, True, True]) == [-1, 2, 1]


def test_an_infinite_cost_forbids_a_pair():
    assert solve([[math.inf, 2], [1, 1]]) == [2, 1]


def test_several_predictions_of_an_object():
    assert solve([[1, 9], [2, 9], [9, 1], [9, 2], [5, 5.5]], most_per_object=2) == [1, 1, 2, 2, 0]
    # Three predictions for two objects are one each; for three or more objects, what there is.
    assert solve([[1, 9], [2, 9], [9, 1]], most_per_object=2) == [1, 0, 2]
    assert solve([[1, 9, 2]], most_per_object=2) == [1]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_cost_that_is_no_number(value):
    with pytest.raises(NoMatchingError) as caught:
        solve([[0, 0, 1], [9, 9, 9], [0, 1, value]], columns=[False, True, True], rows=[True, False, True])
    assert (caught.value.image, caught.value.pair) == (0, (2, 2))
    assert solve([[0, 0, 1], [0, 1, value]], columns=[True, True, False]) == [2, 1]


def test_no_way_around_infinite_costs():
    with pytest.raises(NoMatchingError) as caught:
        solve([[math.inf, 2], [math.inf, 1]])
    assert caught.value.pair is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(dtype):
    every = torch.ones(1, 2, dtype=torch.bool)
    assert match(torch.tensor([[[1, 2], [1.5, 9]]], dtype=dtype), every, every).tolist() == [[2, 1]]
