"""Which samples a process takes. Numbers are those that Detectron2's samplers are tested with."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from detkit.datasets import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detkit.datasets.samplers import inference, repeat_factors, training
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
