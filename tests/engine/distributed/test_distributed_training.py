"""Several processes on the CPU: one launch trains, and one evaluates, everything that the tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.distributed import training_workers
from engine.evaluation import evaluation_workers
from engine.shapes_run import shapes_config

from detkit.datasets.shapes import generate
from detkit.engine import Runner, launch, load_checkpoint_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    generate(path / "data", "val", num_images=10)
    return path


@pytest.fixture(scope="module")
def alone(folder):
    """The run of RetinaNet in one process, with batches of four; and the metrics of the run of two."""
    torch.set_num_threads(1)
    runner = Runner.from_cfg(shapes_config(folder / "alone", folder / "data", 4))
    runner.train()
    return folder / "alone"


@pytest.fixture(scope="module")
def pair(folder):
    """What two processes trained, and saw."""
    (folder / "pair").mkdir()
    return _launch(training_workers.train_pair, 2, folder / "pair", folder / "data")


@pytest.fixture(scope="module")
def three(folder, pair):
    """What three processes measured of what the two had trained."""
    return _launch(evaluation_workers.evaluate_by_three, 3, folder, folder / "data")


def _launch(function, processes, *paths):
    return launch(function, processes, args=tuple(map(str, paths)), device_type="cpu", start_method="forkserver")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint_file(path)["state_dict"]


def test_two_processes_learn_what_one_does(alone, pair, folder):
    """One process with batches of 4 against two with 2, normalisers being means over the processes: 20 steps."""
    assert pair["wrapped"] == "MMDistributedDataParallel"
    one, two = weights(alone / "iter_20.pth"), weights(folder / "pair" / "shapes" / "iter_20.pth")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)


def test_one_two_and_three_processes_measure_the_same(pair, three, folder):
    one = training_workers.average_precisions(folder / "pair" / "shapes", str(folder / "data"))
    assert one["coco/bbox_mAP"] > 0.001
    # NaN where a class has no object of a size; equal as text.
    assert {repr(found) for found in (one, *pair["AP"], *three["AP"])} == {repr(one)}


def test_an_evaluation_takes_each_image_once(three):
    """Ten images among three processes, and two images, so that one process has none."""
    assert [found["names/seen"] for found in three["ten"]] == [list(range(10))] * 3
    assert [found["names/seen"] for found in three["two"]] == [[0, 1]] * 3
    assert [sorted(found["names/seen"]) for found in three["stretches"]] == [list(range(10))] * 3


def test_random_numbers_of_a_sample_do_not_depend_on_the_processes(three, tmp_path):
    """Drawn by the pipeline; the same in three processes by turns, in stretches, and in one process."""
    one = evaluation_workers.seen(tmp_path, 10)["names/noise"]
    assert len(set(one.values())) == 10
    assert three["ten"][0]["names/noise"] == one
    assert three["stretches"][0]["names/noise"] == one


def test_a_metric_that_fails_fails_everywhere(three):
    first, *others = three["broken"]
    assert first == "KeyError: 'broken metric'"
    assert set(others) == {"ValueError: Names failed on the first process: KeyError: 'broken metric'"}


def test_nothing_is_gathered_through_files(pair, three):
    for names in (pair["files"], three["folders"]):
        assert names
        assert not [name for name in names if name.startswith(".")]
    assert pair["logs of others"] == []


def test_processes_share_samples_and_draw_their_own_numbers(pair):
    first, second = pair["samples"]
    for epoch in range(4):
        # Ten samples: batches of three and two in each process.
        drawn = [one for batch in first[2 * epoch : 2 * epoch + 2] + second[2 * epoch : 2 * epoch + 2] for one in batch]
        assert sorted(drawn) == list(range(10))
    noise = [tuple(one) for of_rank in pair["noise"] for one in of_rank]
    assert len(set(noise)) == 40
    assert set(pair["drawn"][0]).isdisjoint(pair["drawn"][1])


def test_a_run_of_two_resumes_bit_for_bit(pair, folder):
    assert pair["iterations"] == (8, 8)
    assert pair["weights"][0] == pair["weights"][1]
    whole, cut = (load_checkpoint_file(folder / "pair" / name / "epoch_4.pth") for name in ("whole", "cut"))
    torch.testing.assert_close(cut["state_dict"], whole["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(cut["optimizer"], whole["optimizer"], rtol=0, atol=0)
    for whole_drawn, (before, after) in zip(pair["drawn"], pair["drawn again"], strict=True):
        # The first number after the resume is drawn from the state that the checkpoint has of this process.
        assert before[:5] + after == whole_drawn


def test_a_checkpoint_has_the_random_numbers_of_each_process(pair, folder):
    states = load_checkpoint_file(folder / "pair" / "whole" / "epoch_4.pth")["rng"]
    assert len(states) == 2
    assert not torch.equal(states[0]["torch"], states[1]["torch"])


def test_running_statistics_are_means_wherever_they_are_read(pair, folder):
    first, second = pair["buffers"]
    assert len(first) == 4
    assert first == second
    without_save = pair["buffers without a save"]
    assert without_save[0] == without_save[1] == first[0]
    saved = weights(folder / "pair" / "whole" / "epoch_4.pth")
    assert saved["body.1.running_mean"].tolist() == first[-1][0]


@pytest.mark.parametrize("update", [False, True])
def test_an_average_has_the_same_statistics_in_each_process_and_in_the_file(pair, folder, update):
    first, second = pair["buffers of averages"][update]
    assert len(first) == 2
    assert first == second
    saved = weights(folder / "pair" / f"averaged_{update}" / "epoch_2.pth")
    assert saved["body.1.running_mean"].tolist() == first[-1][0]


def test_parameters_without_a_gradient_are_named(pair):
    for rank, message in enumerate(pair["idle"]):
        assert f"on process {rank}" in message
        assert "idle.bias, idle.weight" in message
        assert "find_unused_parameters=True" in message
    assert pair["idle is found"] == pair["idle stays so"] == ""


def test_gradients_travel_in_half_precision_where_asked(pair):
    whole, half, brain = (torch.tensor(pair["compressed"][name]) for name in (None, "fp16_compress", "bf16_compress"))
    for compressed in (half, brain):
        assert not torch.equal(compressed, whole)
        torch.testing.assert_close(compressed, whole, rtol=0, atol=1e-3)
    assert not torch.equal(half, brain)
    assert "did you mean 'fp16_compress'" in pair["hook"]


def test_training_data_of_unequal_lengths_are_refused(pair):
    assert "train_dataloader: the processes have [" in pair["uneven"]
    assert "round_up=True" in pair["uneven"]


def test_a_line_is_that_of_both_processes_though_they_note_different_things(pair):
    """Means over all values of both, the longest wait for data; no name is lost, and none is waited for."""
    first, second = (line for line in pair["logged"]["lines"] if "loss" in line)
    losses = pair["logged"]["losses"]
    assert losses[0] != losses[1]
    for line, end in ((first, 2), (second, 4)):
        both = [loss for own in losses for loss in own[end - 2 : end]]
        assert line["loss"] == pytest.approx(sum(both) / 4, rel=1e-12)
        assert line["data_time"] == 2.0
        assert line["only_0"] == line["only_1"] == 1.0
        assert line["common"] == (3 * 1.0 + 2 * 3.0) / 5  # three values of one process, two of the other
    found = [("only_0" in names, "only_1" in names) for names in pair["logged"]["events"]]
    assert found == [(True, False), (False, True)]


def test_a_sharded_backbone_learns_the_same_and_is_saved_whole(alone, pair, folder):
    """Fully sharded data parallelism: each process keeps half; a checkpoint is that of one process, and resumed."""
    found = pair["sharded"]
    assert sum(found["local"]) == found["whole"]
    assert max(found["local"]) < 0.6 * found["whole"]
    assert {"backbone", "backbone.layer3.0", "backbone.layer3.1.conv1"} < set(found["units"])
    one, two = (load_checkpoint_file(path / "iter_20.pth") for path in (alone, folder / "pair" / "sharded"))
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(two[part], one[part], rtol=0, atol=1e-5)
