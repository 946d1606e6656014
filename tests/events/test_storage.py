"""The event storage: what is noted, what is kept, and that nothing waits for the device before somebody reads."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import pytest
import torch
from no_sync import NoSync

from detkit.events import EventStorage, get_event_storage, has_event_storage


def test_the_innermost_storage_is_the_one_in_use():
    assert not has_event_storage()
    with EventStorage() as outer:
        assert has_event_storage()
        assert get_event_storage() is outer
        get_event_storage().put_scalar("a", 1.0)
        with EventStorage(7) as inner:
            assert get_event_storage() is inner
            get_event_storage().put_scalar("a", 2.0)
        assert get_event_storage() is outer
        with pytest.raises(RuntimeError), EventStorage():
            raise RuntimeError
        assert get_event_storage() is outer
    assert not has_event_storage()
    assert outer.latest() == {"a": (1.0, 0)}
    assert inner.latest() == {"a": (2.0, 7)}


def test_one_storage_may_be_entered_twice():
    storage = EventStorage()
    with storage:
        with storage:
            pass
        assert get_event_storage() is storage
    assert not has_event_storage()


def test_a_thread_does_not_write_into_the_storage_of_another():
    seen = []
    with EventStorage():
        thread = threading.Thread(target=lambda: seen.append(has_event_storage()))
        thread.start()
        thread.join()
    assert seen == [False]


def test_outside_of_a_run_everything_is_forgotten():
    storage = get_event_storage()
    storage.put_scalar("a", torch.tensor(1.0))
    storage.put_scalars({"a": 1.0})
    storage.put_image("b", torch.zeros(3, 2, 2))
    storage.put_histogram("c", torch.zeros(3))
    with storage.name_scope("x"):
        storage.put_scalar("a", 1.0)
    assert storage.latest() == {}
    assert storage.take_images() == storage.take_histograms() == []


def test_a_name_scope_ends_with_an_exception_and_nests():
    storage = EventStorage()
    with storage.name_scope("a"), storage.name_scope("b/"):
        storage.put_scalar("k", 1.0)
    with pytest.raises(RuntimeError), storage.name_scope("a"):
        raise RuntimeError
    storage.put_scalar("k", 2.0)
    assert storage.latest() == {"a/b/k": (1.0, 0), "k": (2.0, 0)}


def test_medians_are_over_the_last_steps_not_the_last_values():
    """Detectron2's numbers: window 10; key1 noted at each iteration, key2 at each 2nd, key3 at each 5th."""
    storage = EventStorage()
    found = []
    for iteration in range(20):
        storage.step = iteration
        for key, every in (("key1", 1), ("key2", 2), ("key3", 5)):
            if (iteration + 1) % every == 0:
                storage.put_scalar(key, iteration)
        if (iteration + 1) % 10 == 0:
            found.append([value for value, _ in storage.latest_smoothed(10).values()])
            assert [storage.count_samples(key, 10) for key in ("key1", "key2", "key3")] == [10, 5, 2]
    assert found == [[4.5, 5, 6.5], [14.5, 15, 16.5]]


def test_what_is_not_smoothed_has_its_latest_value():
    storage = EventStorage()
    for step in range(5):
        storage.put_scalar("lr", float(step), smoothing=False, step=step)
        storage.put_scalar("loss", float(step), step=step)
    storage.step = 4
    assert storage.latest_smoothed(5) == {"lr": (4.0, 4), "loss": (2.0, 4)}


def test_another_smoothing_is_refused_before_anything_is_noted():
    storage = EventStorage()
    storage.put_scalar("a", 1.0, smoothing=False)
    with pytest.raises(ValueError, match="'a' was noted with smoothing=False before, now with True"):
        storage.put_scalar("a", 2.0)
    with pytest.raises(ValueError, match="smoothing=False"):
        storage.put_scalars({"b": 1.0, "a": 2.0})
    assert storage.latest() == {"a": (1.0, 0)}


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("x", TypeError, "'s/a': a number or a tensor was expected, got 'x'"),
        ([1.0], TypeError, "'s/a': a number or a tensor was expected"),
        (torch.ones(2), ValueError, r"'s/a': a tensor of one element was expected, got the shape \(2,\)"),
        (torch.ones(0), ValueError, r"got the shape \(0,\)"),
    ],
)
def test_what_is_no_number_is_refused_when_it_is_noted(value, error, text):
    storage = EventStorage()
    with storage.name_scope("s"), pytest.raises(error, match=text):
        storage.put_scalars({"b": torch.tensor(1.0), "a": value})
    assert storage.latest() == {}


def test_an_unknown_name_is_refused_with_the_nearest():
    storage = EventStorage()
    with pytest.raises(KeyError, match="no scalar 'loss_cls' was noted; nothing was"):
        storage.history("loss_cls")
    storage.put_scalars({"loss_bbox": 1.0, "loss_cls": 2.0})
    with pytest.raises(KeyError, match="did you mean 'loss_cls'"):
        storage.history("loss_clss")


def test_all_kinds_of_numbers_are_exact():
    storage = EventStorage()
    values = {
        "float": 0.1,
        "int": 3,
        "bool": True,
        "numpy": np.float32(0.5),
        "half": torch.tensor(1.5, dtype=torch.float16),
        "bfloat": torch.tensor([0.25], dtype=torch.bfloat16),
        "double": torch.tensor(0.1, dtype=torch.float64),
        "count": torch.tensor(2**40 + 1),
        "flag": torch.tensor(True),
        "parameter": torch.nn.Parameter(torch.tensor(0.75), requires_grad=False),
    }
    storage.put_scalars(values)
    for name, value in values.items():
        storage.put_scalar(f"{name}_alone", value)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    expected = {name: float(value) for name, value in values.items()}
    assert latest == {**expected, **{f"{name}_alone": value for name, value in expected.items()}}


def test_a_tensor_may_change_after_it_was_noted_and_keeps_no_graph():
    storage = EventStorage()
    weight = torch.ones((), requires_grad=True)
    counter = torch.zeros(())
    for step in range(3):
        counter += 1
        storage.put_scalar("counter", counter, step=step)
        storage.put_scalars({"a": weight * 2, "b": weight * 3}, step=step)
    assert not any(row.requires_grad for puts in storage._unread._all for row in puts.rows)
    assert [value for _, value in storage.history("counter").samples] == [1.0, 2.0, 3.0]
    assert storage.latest()["b"] == (3.0, 2)


def test_values_noted_beside_different_names_keep_their_order():
    storage = EventStorage()
    storage.put_scalars({"a": torch.tensor(1.0), "b": torch.tensor(1.0)}, step=1)
    storage.put_scalar("a", 2.0, step=1)
    storage.put_scalar("a", torch.tensor(3.0), step=2)
    storage.put_scalars({"a": torch.tensor(4.0), "b": torch.tensor(4.0)}, step=2)
    storage.put_scalar("a", 5.0, step=3)
    assert storage.history("a").samples == [(1, 1.0), (1, 2.0), (2, 3.0), (2, 4.0), (3, 5.0)]
    assert storage.history("b").samples == [(1, 1.0), (2, 4.0)]


def test_nothing_waits_for_the_device_until_somebody_reads(monkeypatch):
    fetched = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: fetched.append(self.numel()) or tolist(self))
    storage = EventStorage()
    with NoSync():
        for step in range(1, 51):
            storage.put_scalars({f"loss_{i}": torch.tensor(float(step + i)) for i in range(5)}, step=step)
            storage.put_scalars({"time": 0.1, "data_time": 0.2}, step=step)
            storage.put_scalar("count", torch.tensor(step), step=step)
            storage.put_histogram("scores", torch.rand(10))
        assert fetched == []
    assert storage.latest()["loss_4"] == (54.0, 50)
    assert fetched == [50 * 6]  # one transfer of everything
    assert storage.history("count").samples[10] == (11, 11.0)
    assert fetched == [50 * 6]


def test_memory_is_bounded_when_nobody_reads():
    storage = EventStorage(length=100)

    def kept() -> int:
        rows = [row for puts in storage._unread._all for row in puts.rows]
        reading = storage._unread._reading
        return len(rows) + (0 if reading is None else sum(len(puts.steps) for puts in reading.puts))

    sizes = []
    with NoSync():
        for step in range(1, 6001):
            storage.put_scalars({"loss": torch.tensor(1.0), "loss_cls": torch.tensor(float(step))}, step=step)
            storage.put_scalar("time", 0.5, step=step)
            if step % 10 == 0:
                storage.put_image("image", torch.zeros(1, 2, 2))
                storage.put_histogram("histogram", torch.ones(2), bins=2)
            sizes.append(kept())
    assert max(sizes) <= 2000
    assert len(storage.take_images()) == len(storage.take_histograms()) == 64
    history = storage.history("loss_cls")
    assert history.samples == [(step, float(step)) for step in range(5901, 6001)]
    assert history.global_mean() == 3000.5
    assert history.take() == (6000 * 6001 / 2, 6000, 6000)  # the mean of a line that is longer than the history
    assert sys.getsizeof(history._values) < 2000


def test_histograms_are_counted_where_the_values_are():
    storage = EventStorage(3)
    values = torch.tensor([[0.0, 1.0, 2.0], [4.0, math.nan, 4.0], [3.0, math.inf, -math.inf]], requires_grad=True)
    with storage.name_scope("head"):
        storage.put_histogram("scores", values, bins=4)
    (histogram,) = storage.take_histograms()
    # finite: 0 1 2 4 4 3, in bins [0, 1), [1, 2), [2, 3), [3, 4]
    assert histogram == ("head/scores", [1, 1, 1, 3], 0.0, 4.0, 14.0, 46.0, 3)
    assert storage.take_histograms() == []
    storage.put_histogram("same", torch.full((5,), 2.0), bins=3)
    assert storage.take_histograms()[0].counts == [5, 0, 0]
    storage.put_histogram("none", torch.full((5,), math.nan), bins=2)
    assert storage.take_histograms()[0].counts == [0, 0]
    with pytest.raises(ValueError, match=r"put_histogram\('x'\): nothing to count in 0 values"):
        storage.put_histogram("x", torch.empty(0))


def test_images_wait_for_a_writer():
    storage = EventStorage(3)
    image = torch.zeros(3, 2, 4)
    storage.put_image("a", image)
    image += 1
    storage.put_image("b", np.ones((1, 2, 4), dtype=np.uint8), step=9)
    first, second = storage.take_images()
    assert (first.name, first.image.sum().item(), first.step) == ("a", 0.0, 3)
    assert (second.name, second.image.dtype, second.step) == ("b", torch.uint8, 9)
    assert storage.take_images() == []
    with pytest.raises(ValueError, match=r"put_image\('c'\): \(1 or 3, H, W\) was expected, got \(2, 4, 3\)"):
        storage.put_image("c", torch.zeros(2, 4, 3))


def test_a_resumed_storage_goes_on_with_the_sums():
    storage = EventStorage()
    storage.put_scalars({"loss": torch.tensor(2.0), "acc": 4.0})
    storage.put_scalar("lr", 0.1, smoothing=False)
    state = storage.state_dict()
    resumed = EventStorage()
    resumed.put_scalar("loss", 100.0)  # of before
    resumed.load_state_dict(state)
    assert resumed.latest() == resumed.latest_smoothed() == {}
    resumed.put_scalar("loss", torch.tensor(6.0))
    assert resumed.history("loss").global_mean() == 4.0
    assert resumed.history("loss").take() == (8.0, 2, 0)
    assert "lr" not in resumed.histories()
    with pytest.raises(ValueError, match="smoothing=True before"):
        resumed.put_scalar("loss", 1.0, smoothing=False)


def test_a_tensor_that_is_spread_over_processes_is_noted_whole(tmp_path):
    """A loss on sharded weights is a DTensor; this group of processes has one."""
    distributed_tensor = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        weights = distributed_tensor.distribute_tensor(torch.ones(3, requires_grad=True), mesh)
        storage = EventStorage(4)
        storage.put_scalars({"loss": weights.sum(), "loss_cls": torch.tensor(0.5)})
        storage.put_scalar("norm", weights.sum() * 2)
        assert storage.latest() == {"loss": (3.0, 4), "loss_cls": (0.5, 4), "norm": (6.0, 4)}
    finally:
        torch.distributed.destroy_process_group()


def test_a_tensor_of_a_class_that_cannot_be_made_plain_is_refused():
    class Stubborn(torch.Tensor):
        def as_subclass(self, cls):
            return self

    with pytest.raises(TypeError, match="'a': a plain tensor was expected, got Stubborn"):
        EventStorage().put_scalars({"a": torch.ones(()).as_subclass(Stubborn)})


def test_what_a_step_gave_reads_as_if_it_had_been_noted_one_by_one():
    owned, noted = EventStorage(), EventStorage()
    for step in (1, 2, 3):
        # the same names may be a tensor in one step and a number in another
        values = {
            "loss": torch.tensor(float(step)),
            "count": torch.tensor(step) if step != 2 else 2,
            "time": 0.5 * step,
        }
        owned.put_owned(values, step)
        noted.put_scalars(values, step=step)
    assert owned.latest() == noted.latest() == {"loss": (3.0, 3), "count": (3.0, 3), "time": (1.5, 3)}
    assert owned.history("count").mean(3) == noted.history("count").mean(3) == 2.0
    with pytest.raises(ValueError, match="'wide'"):
        owned.put_owned({"wide": torch.zeros(2)}, 4)
