import pytest
import torch
from assigner_laws import (
    Scene,
    assert_batch_is_its_images,
    assert_chunks_change_nothing,
    assert_no_sync_and_traceable,
    assert_reference,
    assert_regions_add_no_positive,
    instances,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData
from reference import cases

from detkit.task_modules import RegionAssigner

LEVELS = {
    "featmap_sizes": [[16, 16], [8, 8], [4, 4]],
    "num_level_anchors": [256, 64, 16],
    "anchor_scale": 4,
    "anchor_strides": [8, 16, 32],
}


def anchors():
    found = []
    for stride, count in ((8, 16), (16, 8), (32, 4)):
        y, x = torch.meshgrid(torch.arange(count) * stride, torch.arange(count) * stride, indexing="ij")
        centre = torch.stack([x, y], dim=-1).reshape(-1, 2).float()
        found.append(torch.cat([centre - 2 * stride, centre + 2 * stride], dim=1))
    return torch.cat(found)


def scene(seed, counts=(4, 0, 2), border=0):
    metas = [{"img_shape": (120 - 8 * index, 100 + 8 * index)} for index in range(len(counts))]
    return Scene.random(
        anchors(), list(counts), seed, settings={**LEVELS, "img_metas": metas, "allowed_border": border}
    )


@pytest.mark.parametrize("case", cases("assigners/RegionAssigner"))
def test_reference(case):
    if "error" in case:
        with pytest.raises(NotImplementedError, match="ignored regions have no meaning here, got 2"):
            assert_reference(case)
    else:
        assert_reference(case)


def assign(gt, **changes):
    pred = InstanceData(priors=anchors(), valid_flags=torch.ones(336, dtype=torch.bool))
    arguments = {**LEVELS, "img_meta": {"img_shape": (128, 128)}, "allowed_border": -1, **changes}
    return RegionAssigner(center_ratio=0.25, ignore_ratio=0.5).assign(pred, gt, **arguments)


def test_by_hand():
    # 32 x 32 is the size of the first level's anchors. Its centre region is 48 +- 4 pixels, in cells 5.5 to 6.5,
    # rounded half to even 6 to 6; its ignore region 5 to 7; at the next level 2.5 to 3.5, rounded 2 to 4.
    gt = InstanceData(bboxes=torch.tensor([[32.0, 32, 64, 64]]), labels=torch.tensor([3]))
    result = assign(gt)
    first, second, third = (result.gt_inds[piece].view(n, n) for piece, n in
                            ((slice(0, 256), 16), (slice(256, 320), 8), (slice(320, 336), 4)))  # fmt: skip
    expected = torch.zeros(16, 16, dtype=torch.int64)
    expected[5:8, 5:8] = -1
    expected[6, 6] = 1
    assert torch.equal(first, expected)
    expected = torch.zeros(8, 8, dtype=torch.int64)
    expected[2:5, 2:5] = -1
    assert torch.equal(second, expected)
    assert not third.any()
    assert result.labels.tolist() == [3 if own == 1 else 0 for own in result.gt_inds.tolist()]
    assert result.max_overlaps is None


def test_of_objects_in_one_place_the_last_counts():
    square, wide = [32.0, 32, 64, 64], [24.0, 32, 72, 64]

    def row(*boxes):
        result = assign(InstanceData(bboxes=torch.tensor(boxes), labels=torch.arange(2)))
        return result.gt_inds[:256].view(16, 16)[6, 4:9].tolist()

    # Cells 6 (5 to 7) of the square one are centre (ignored), and 5 to 7 (4 to 8) of the wide one.
    assert row(square, wide) == [-1, 2, 2, 2, -1]
    assert row(wide, square) == [-1, -1, 2, -1, -1]


def test_anchors_outside_are_ignored_where_there_are_objects():
    gt = instances(1, 0)
    outside = (anchors()[:, :2] < 0).any(dim=1) | (anchors()[:, 2:] >= 128).any(dim=1)
    assert (assign(gt, allowed_border=0).gt_inds[outside] == -1).all()
    nothing = assign(gt[:0], allowed_border=0)
    assert not nothing.gt_inds.any()
    assert (nothing.labels == -1).all()
    assert torch.equal(nothing.max_overlaps, torch.zeros(336))


def test_priors_that_take_no_part_are_ignored():
    images = scene(0)
    valid = torch.rand(3, 336, generator=torch.Generator().manual_seed(0)) > 0.3
    some, every = images.assign(RegionAssigner(), valid), images.assign(RegionAssigner())
    assert torch.equal(some.gt_inds, torch.where(valid, every.gt_inds, -1))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), border=st.sampled_from([-1, 0, 20]))
def test_laws(seed, size, border, monkeypatch):
    use, images = RegionAssigner(), scene(seed, border=border)
    assert_batch_is_its_images(use, images)
    assert_chunks_change_nothing(use, images, size, monkeypatch)
    assert_regions_add_no_positive(use, images)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permuting_objects_permutes_the_assignment(seed):
    """As far as it does not hang on the last object."""
    gt = instances(3, seed)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    first, second = assign(gt), assign(gt[order])
    assert torch.equal(first.gt_inds == 0, second.gt_inds == 0)
    for index in range(3):
        alone = assign(gt[index : index + 1])
        assert not ((first.gt_inds == index + 1) & (alone.gt_inds != 1)).any()


@pytest.mark.parametrize("counts", [(0,), (1,), (400,), (0, 0)])
def test_nothing_one_and_more_objects_than_anchors(counts):
    result = scene(3, counts).assign(RegionAssigner())
    assert result.gt_inds.shape == result.labels.shape == (len(counts), 336)
    assert (result.gt_inds > 0).any() == (counts[0] > 0)


def test_no_sync():
    assert_no_sync_and_traceable(RegionAssigner(), scene(0))


def test_levels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"336 anchors, but levels of \[256, 64\]"):
        assign(instances(1, 0), num_level_anchors=[256, 64])


@pytest.mark.parametrize("ratios", [(0.0, 0.5), (0.2, 1.1), (0.5, 0.2), (-0.1, 0.5)])
def test_ratios_that_are_none(ratios):
    with pytest.raises(ValueError, match=f"RegionAssigner: expected 0 < .* got center_ratio={ratios[0]} and ignore"):
        RegionAssigner(*ratios)


def test_numbers_go_to_the_device_without_waiting(monkeypatch):
    """On a GPU ``new_tensor`` copies and waits; nothing else shows it on a CPU."""
    monkeypatch.setattr(torch.Tensor, "new_tensor", None)
    assert (assign(instances(2, 0)).gt_inds > 0).any()
