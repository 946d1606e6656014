"""What holds for every assigner of dense heads: permutation, batches, pieces, ignored regions, no waiting, tracing."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import NoSync
from task_modules.assigners import dense_scene
from task_modules.assigners.dense_scene import CONFIGS, NUM_CLASSES, NUM_PRIORS, anchors, call, objects, regions

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import BboxOverlaps2D
from detkit.task_modules.assigners import chunks, overlap_rules

NAMES = list(CONFIGS)
# Rule 3 of MaxIoU: of objects that claim one prior the last wins, and a region leaves the second best to be claimed.
WITHOUT_CLAIMS = [name for name in NAMES if not name.startswith("MaxIoU")]


def assert_same(first, second, name):
    """Equal to the bit; but a power's last bit depends on where in memory its base lies."""
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if name == "ATSS_alpha" else {"rtol": 0, "atol": 0}
    for a, b in zip(first, second, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("name", WITHOUT_CLAIMS)
@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_permuting_objects_permutes_the_assignment(name, count, seed):
    gt = objects(count, seed)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    first = call(name, GroundTruth.from_instances([gt]), seed)
    second = call(name, GroundTruth.from_instances([gt[order]]), seed)
    back = torch.cat([torch.tensor([0]), order + 1])
    mapped = torch.where(second.gt_inds > 0, back[second.gt_inds.clamp(min=0)], second.gt_inds)
    assert_same(first, second._replace(gt_inds=mapped), name)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 10_000))
def test_a_batch_is_its_images_one_by_one(name, counts, seed):
    images = [objects(count, seed + i) for i, count in enumerate(counts)]
    ignored = [regions(i % 3, seed + i) for i in range(len(counts))]
    batch = call(name, GroundTruth.from_instances(images, ignored), seed)
    with mock.patch("task_modules.assigners.dense_scene.predictions", alone_in(len(counts))) as draw:
        for index, (gt, region) in enumerate(zip(images, ignored, strict=True)):
            draw.index = index
            alone = call(name, GroundTruth.from_instances([gt], [region]), seed)
            assert_same(alone, [None if value is None else value[index : index + 1] for value in batch], name)


def alone_in(num_images):
    """Predictions of one image of a batch, instead of those of a batch of one."""
    from task_modules.assigners import dense_scene

    whole = dense_scene.predictions

    def draw(_, seed):
        return {key: value[draw.index : draw.index + 1] for key, value in whole(num_images, seed).items()}

    return draw


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 1000])
def test_pieces_change_nothing(name, chunk):
    truth = GroundTruth.from_instances([objects(6, 0), objects(3, 1)], [regions(2, 0), None])
    dense = call(name, truth)
    with (
        mock.patch.object(chunks, "CPU_CHUNK", chunk),
        mock.patch.object(chunks, "LEAST_PRIORS", 5),
        mock.patch.object(overlap_rules, "KEPT_ELEMENTS", 0),
    ):
        assert_same(call(name, truth), dense, name)


@pytest.mark.parametrize("name", WITHOUT_CLAIMS)
@pytest.mark.parametrize("seed", range(5))
def test_priors_that_take_no_part_might_as_well_not_be_there(name, seed):
    truth = GroundTruth.from_instances([objects(4, seed)])
    keep = torch.rand(NUM_PRIORS, generator=torch.Generator().manual_seed(seed)) > 0.3
    masked = call(name, truth, seed, keep.unsqueeze(0))
    assert (masked.gt_inds[:, ~keep] == -1).all()
    without = call(name, truth, seed, keep=keep)
    assert_same([value if value is None else value[:, keep] for value in masked], without, name)


@pytest.mark.parametrize("name", [*WITHOUT_CLAIMS, "MaxIoU"])
@pytest.mark.parametrize("seed", range(5))
def test_a_region_that_covers_no_prior_changes_nothing(name, seed):
    gt, outside = objects(4, seed), regions(1, seed)
    outside.bboxes += 500
    plain = call(name, GroundTruth.from_instances([gt]), seed)
    assert_same(plain, call(name, GroundTruth.from_instances([gt], [outside]), seed), name)


@pytest.mark.parametrize("name", ["MaxIoU", "ATSS"])
def test_priors_in_a_region_are_ignored(name):
    everything = regions(1, 0)
    everything.bboxes = torch.tensor([[-100.0, -100.0, 48.0, 200.0]])
    gt = objects(3, 2)
    gt.bboxes[:, 0::2] = gt.bboxes[:, 0::2] / 3  # all in the left half
    found = call(name, GroundTruth.from_instances([gt], [everything])).gt_inds[0, :144].view(12, 12)
    assert (found[:, :4] == -1).all()
    assert (found[:, 8:] >= 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [(0,), (0, 0), (0, 2)])
def test_images_without_objects_are_background(name, counts):
    truth = GroundTruth.from_instances([objects(count, i) for i, count in enumerate(counts)])
    result = call(name, truth)
    assert (result.gt_inds[0] == 0).all()
    assert (result.labels[0] == -1).all()
    assert (result.max_overlaps[0] == 0).all()


@pytest.mark.parametrize("name", ["ATSS_alpha", "SimOTA", "TaskAligned", "DynamicSoftLabel"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_absent_priors_predict_does_not_count(name, broken):
    truth = GroundTruth.from_instances([objects(4, 0)])
    keep = torch.rand(NUM_PRIORS, generator=torch.Generator().manual_seed(1)) > 0.3
    fine = call(name, truth, 0, keep.unsqueeze(0))
    whole = dense_scene.predictions(1, 0)
    for value in whole.values():
        value[:, ~keep] = broken
    with mock.patch.object(dense_scene, "predictions", return_value=whole):
        assert_same(call(name, truth, 0, keep.unsqueeze(0)), fine, name)


@pytest.mark.parametrize("name", ["ATSS_alpha", "SimOTA", "TaskAligned", "DynamicSoftLabel"])
@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
def test_a_label_that_is_no_class_is_refused_by_name(name, label):
    """In a batch it would be a class of another image."""
    images = [objects(3, 0), objects(2, 1)]
    images[1].labels[0] = label
    kind = CONFIGS[name]["type"]
    with pytest.raises(RuntimeError, match=rf"{kind}: the label of an object lies outside \[0, {NUM_CLASSES}\)"):
        call(name, GroundTruth.from_instances(images))


@pytest.mark.parametrize("name", NAMES)
def test_half_overlaps_give_the_same_kind_of_result(name):
    """As ``dtype='fp16'`` gives them on a GPU."""
    truth = GroundTruth.from_instances([objects(4, 0), objects(0, 1)])
    whole = BboxOverlaps2D.__call__
    with mock.patch.object(BboxOverlaps2D, "__call__", lambda *args, **kwargs: whole(*args, **kwargs).half()):
        result = call(name, truth)
    assert (result.gt_inds[0] > 0).any()
    assert torch.isfinite(result.max_overlaps).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_for_a_gradient(name):
    truth = GroundTruth.from_instances([objects(4, 0)])
    with mock.patch.object(dense_scene, "anchors", return_value=anchors().requires_grad_()):
        result = call(name, truth)
    assert not any(value is not None and value.requires_grad for value in result)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name):
    truth = GroundTruth.from_instances([objects(6, 0), objects(0, 1)], [regions(2, 0), None])
    with NoSync():
        call(name, truth)


@pytest.mark.parametrize("name", NAMES)
def test_a_compiler_traces_the_whole(name):
    truth = GroundTruth.from_instances([objects(6, 0), objects(3, 1)], [regions(2, 0), None])
    with traced(name) as calls:
        compiled = call(name, truth)
    assert calls == [name]
    assert_same(compiled, call(name, truth), name)


class traced:
    """Within it, ``assign_batch`` of the assigner is compiled as one graph."""

    def __init__(self, name):
        from detkit.registry import TASK_UTILS

        self.cls = TASK_UTILS.get(CONFIGS[name]["type"])
        self.name, self.calls = name, []

    def __enter__(self):
        torch.compiler.reset()
        compiled = torch.compile(self.cls.assign_batch, fullgraph=True, backend="eager")

        def call_compiled(*args, **kwargs):
            self.calls.append(self.name)
            return compiled(*args, **kwargs)

        self.patch = mock.patch.object(self.cls, "assign_batch", call_compiled)
        self.patch.start()
        return self.calls

    def __exit__(self, *_):
        self.patch.stop()
