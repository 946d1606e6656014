"""Which samples a process takes. Numbers are those that Detectron2's samplers are tested with."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from detkit.datasets import ClassAwareSampler, InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detkit.datasets.samplers import class_aware, inference, repeat_factors, training
from detkit.engine.data.dataloader import build_dataloader
from detkit.registry import DATA_SAMPLERS


@pytest.fixture
def ranks(monkeypatch):
    """Sets the place of this process among others."""

    def place(rank: int, world: int) -> None:
        for module in (inference, training):
            monkeypatch.setattr(module, "get_dist_info", lambda: (rank, world))

    return place


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(0, [0, 0, 0, 0, 0]), (16, [8, 8]), (2, [1, 1, 0]), (42, [11, 11, 10, 10])],
)
def test_an_evaluation_is_split_into_stretches(ranks, size, sizes):
    stretches = []
    for rank in range(len(sizes)):
        ranks(rank, len(sizes))
        sampler = InferenceSampler(range(size))
        assert len(sampler) == len(list(sampler))
        stretches.append(list(sampler))
    assert [len(stretch) for stretch in stretches] == sizes
    assert [one for stretch in stretches for one in stretch] == list(range(size))


def test_an_endless_order_follows_from_the_seed():
    torch.manual_seed(1)
    sampler = TrainingSampler(range(30), seed=42)
    first = list(islice(sampler, 65))
    torch.manual_seed(2)  # reseeding the process changes nothing
    assert list(islice(TrainingSampler(range(30), seed=42), 65)) == first
    assert list(islice(sampler, 65)) == first
    assert list(islice(TrainingSampler(range(30), seed=43), 65)) != first
    assert sorted(first[:30]) == sorted(first[30:60]) == list(range(30))
    assert first[:30] != first[30:60]
    assert list(islice(TrainingSampler(range(3), shuffle=False, seed=0), 7)) == [0, 1, 2, 0, 1, 2, 0]


def test_processes_take_turns_in_one_order(ranks):
    whole = list(islice(TrainingSampler(range(7), seed=5), 21))
    parts = []
    for rank in range(3):
        ranks(rank, 3)
        sampler = TrainingSampler(range(7), seed=5)
        assert len(sampler) == 3
        parts.append(list(islice(sampler, 7)))
    assert [parts[index % 3][index // 3] for index in range(21)] == whole


def test_workers_do_not_change_the_order():
    orders = []
    for workers in (0, 2):
        cfg = {"dataset": list(range(30)), "sampler": {"type": "TrainingSampler"}, "batch_size": 4}
        loader = build_dataloader({**cfg, "num_workers": workers}, 42)
        orders.append(list(islice(loader, 12)))
    assert orders[0] == orders[1]


def test_images_of_rare_classes_are_repeated():
    """Class 0 is in two of three images, class 1 in one; below half, its images are asked for sqrt(0.5 * 3) times."""
    factors = repeat_factors([[0, 1], [0], []], 0.5)
    torch.testing.assert_close(factors, torch.tensor([math.sqrt(1.5), 1, 1], dtype=torch.float64))
    assert repeat_factors([[0, 1], [0], []], 0.5, sqrt=False).tolist() == [1.5, 1, 1]
    assert repeat_factors([[1, 1], [0], [0]], 0.5).tolist() == pytest.approx([math.sqrt(1.5), 1, 1])
    with pytest.raises(ValueError, match=r"repeat_thr must be at least 0, got -0\.1"):
        repeat_factors([[0]], -0.1)


def test_a_fraction_is_rounded_anew_in_each_pass():
    class Images(list):
        def get_cat_ids(self, index):
            return self[index]

    dataset = Images([[0, 1], [0], []])
    sampler = DATA_SAMPLERS.build(
        {"type": "RepeatFactorTrainingSampler", "dataset": dataset, "repeat_thr": 0.5, "sqrt": False, "seed": 0}
    )
    assert isinstance(sampler, RepeatFactorTrainingSampler)
    drawn = list(islice(sampler, 7000))
    shares = [drawn.count(index) / 2000 for index in range(3)]
    assert shares == pytest.approx([1.5, 1, 1], abs=0.05)
    assert list(islice(sampler, 100)) == drawn[:100]


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="TrainingSampler: the dataset is empty"):
        TrainingSampler([])


class Labelled:
    """Images by their classes."""

    def __init__(self, *labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def get_cat_ids(self, index):
        return self.labels[index]


def test_every_class_is_sampled_as_often_as_any_other():
    # One image of class 5, four of class 2, one of nothing.
    sampler = ClassAwareSampler(Labelled([2], [2, 2], [5], [], [2], [2]), seed=3)
    order = list(sampler)
    assert len(order) == len(sampler) == 6
    assert order.count(2) == 3
    assert 3 not in order
    assert len({index for index in order if index != 2}) == 3  # no image of a class again before all of it
    assert list(sampler) == order
    orders = set()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
    assert len(orders) > 1
    pairs = list(ClassAwareSampler(Labelled([2], [2], [5], [5]), seed=3, num_sample_class=2))
    assert {frozenset(pairs[:2]), frozenset(pairs[2:])} == {frozenset({0, 1}), frozenset({2, 3})}


def test_processes_share_an_epoch_of_classes(monkeypatch):
    dataset = Labelled([0], [1], [2], [0], [1])
    whole = list(ClassAwareSampler(Labelled(*dataset.labels, [0]), seed=1))
    parts = []
    for rank in range(2):
        monkeypatch.setattr(class_aware, "get_dist_info", lambda rank=rank: (rank, 2))
        sampler = ClassAwareSampler(Labelled(*dataset.labels, [0]), seed=1)
        parts += list(sampler)
        assert len(sampler) == 3
    assert parts == whole
    with pytest.raises(ValueError, match="none of the 2 images has an object"):
        ClassAwareSampler(Labelled([], []))
    with pytest.raises(ValueError, match=r"num_sample_class: .* got 0"):
        ClassAwareSampler(dataset, num_sample_class=0)
