"""Random numbers by place in the run: workers, epochs and resuming."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from engine.engine_toys import ToyDataset
from mmengine.dataset import DefaultSampler

from detkit.engine.data.dataloader import build_dataloader
from detkit.engine.data.seeding import derive_seed, rng_state, seed_everything, set_rng_state


def loader_config(workers: int = 0, **changes):
    sampler = {"type": "DefaultSampler", "shuffle": True}
    return {"dataset": {"type": "ToyDataset"}, "sampler": sampler, "batch_size": 5, "num_workers": workers, **changes}


def draw(loader, epoch: int) -> torch.Tensor:
    loader.batch_sampler.set_epoch(epoch)
    return torch.stack([sample for batch in loader for sample in batch["inputs"]])


def test_workers_do_not_matter_and_epochs_differ():
    alone = build_dataloader(loader_config(), 7)
    epochs = [draw(alone, epoch) for epoch in range(3)]
    for changes in ({"workers": 2}, {"workers": 2, "persistent_workers": True}):
        other = build_dataloader(loader_config(**changes), 7)
        assert all(torch.equal(draw(other, epoch), epochs[epoch]) for epoch in range(3))
    draws = torch.cat([epoch[:, 0] for epoch in epochs])
    assert len(draws.unique()) == len(draws)  # no augmentation twice
    assert not torch.equal(epochs[0][:, 3], epochs[1][:, 3])  # another order
    assert not torch.equal(draw(build_dataloader(loader_config(), 8), 0), epochs[0])


def test_an_index_drawn_twice_is_augmented_twice():
    loader = build_dataloader(loader_config(sampler=[1, 1, 1]), 0)
    (batch,) = [batch["inputs"] for batch in loader]
    assert len({float(sample[0]) for sample in batch}) == 3


def test_the_main_process_generator_is_not_used_up_by_the_loader():
    loader = build_dataloader(loader_config(), 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    iter(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_without_workers_ignores_what_needs_them():
    loader = build_dataloader(loader_config(persistent_workers=True, prefetch_factor=4), 0)
    assert len(list(loader)) == 3


def test_loader_errors_name_the_key():
    with pytest.raises(KeyError, match="num_worker: unknown key; did you mean 'num_workers'"):
        build_dataloader({**loader_config(), "num_worker": 2}, 0)
    with pytest.raises(ValueError, match="12 samples give no batch of 20"):
        build_dataloader(loader_config(batch_size=20, drop_last=True), 0)
    with pytest.raises(KeyError, match=r"dataloader\.dataset is missing"):
        build_dataloader({"batch_size": 1}, 0)
    with pytest.raises(KeyError, match="'sampler' is missing"):
        build_dataloader({"dataset": {"type": "ToyDataset"}, "batch_size": 2}, 0)
    with pytest.raises(KeyError, match="pseudo_collate"):
        build_dataloader(loader_config(collate_fn={"type": "pseudo_colate"}), 0)


def test_wrapped_attributes_shine_through():
    loader = build_dataloader(loader_config(), 0)
    assert loader.dataset.metainfo["classes"] == ToyDataset().metainfo["classes"]
    assert isinstance(loader.batch_sampler.sampler, DefaultSampler)
    assert loader.batch_sampler.batch_size == 5
    assert loader.dataset[3]["inputs"][3] == 3  # a plain index works, unseeded


def test_derived_seeds_depend_on_every_part():
    seeds = {derive_seed(*parts) for parts in [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a1")]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_rng_state_round_trip_is_plain():
    seed_everything(3)
    state = torch_round_trip(rng_state())
    first = (random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item())
    set_rng_state(state)
    assert (random.random(), np.random.rand(), np.random.randn(), torch.rand(()).item()) == first


def torch_round_trip(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
