"""Random sampling: quotas, chances, and numbers that come from the generator a run restores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_modules.samplers.images import batch, image, indices

from detkit.engine.data.seeding import rng_state, seed_everything, set_rng_state
from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import BatchAssignResult, RandomSampler


def assigned(rows):
    gt_inds = torch.as_tensor(rows)
    return BatchAssignResult(gt_inds, torch.zeros(gt_inds.shape), torch.where(gt_inds > 0, 0, -1))


def test_by_hand():
    # Half of 4 may be positive: 2 of the 3 are. The other 2 are negative, never the ignored one.
    sampled = RandomSampler(4, 0.5, add_gt_as_proposals=False).sample_batch(assigned([[1, 2, 1, 0, 0, 0, -1]]))
    assert sampled.positive[0, :3].sum() == 2
    assert sampled.negative[0, 3:6].sum() == 2
    assert (sampled.positive | sampled.negative).sum() == 4
    assert sampled.avg_factor == 4


def test_negatives_take_the_place_of_missing_positives():
    sampled = RandomSampler(4, 0.5, add_gt_as_proposals=False).sample_batch(assigned([[1, 0, 0, 0, 0, 0]]))
    assert sampled.positive.tolist() == [[True, False, False, False, False, False]]
    assert sampled.negative.sum() == 3


@pytest.mark.parametrize(
    ("bound", "positives", "negatives"),
    # 4.2 * 15 is below 63 in float32; without positives the bound is that of one.
    [(0, 1, 0), (1, 1, 1), (3, 2, 6), (2.5, 1, 2), (2.5, 2, 5), (4.2, 15, 63), (3, 0, 3), (-1, 1, 79)],
)
def test_bound_of_negatives(bound, positives, negatives):
    sampler = RandomSampler(80, 0.25, neg_pos_ub=bound, add_gt_as_proposals=False)
    sampled = sampler.sample_batch(assigned([[1] * positives + [0] * 100]))
    assert sampled.positive.sum() == positives
    assert sampled.negative.sum() == negatives


def test_objects_come_in_front():
    inputs = image(20, 3, seed=0, positive=0.0)
    result = RandomSampler(100, 0.5).sample(**inputs)
    assert result.pos_inds.tolist() == [0, 1, 2]
    assert result.pos_is_gt.tolist() == [1, 1, 1]
    assert result.pos_assigned_gt_inds.tolist() == [0, 1, 2]
    assert torch.equal(result.pos_priors, inputs["gt_instances"].bboxes)
    assert torch.equal(result.pos_gt_bboxes, inputs["gt_instances"].bboxes)
    assert torch.equal(result.pos_gt_labels, inputs["gt_instances"].labels)
    assert torch.equal(result.neg_priors, inputs["pred_instances"].priors[result.neg_inds - 3])


def test_padded_objects_are_nothing():
    sampler = RandomSampler(1000, 0.5)
    images = [image(30, count, seed) for seed, count in enumerate((4, 0, 2))]
    sampled = sampler.sample_batch(*batch(images))
    padded = torch.tensor([[False] * 4, [True] * 4, [False] * 2 + [True] * 2])
    assert not (sampled.positive | sampled.negative)[:, :4][padded].any()
    assert (sampled.gt_inds[:, :4][padded] == -1).all()
    assert (sampled.labels[:, :4][padded] == -1).all()
    assert torch.equal(sampled.is_gt[:, :4], ~padded)
    assert not sampled.is_gt[:, 4:].any()


@pytest.mark.parametrize("add", [True, False])
def test_a_batch_is_its_images(add):
    """Where the quota takes everything, nothing is random."""
    sampler = RandomSampler(1000, 0.5, add_gt_as_proposals=add)
    images = [image(50, count, seed) for seed, count in enumerate((3, 0, 7, 1))]
    sampled = sampler.sample_batch(*batch(images))
    total = 0
    for index, inputs in enumerate(images):
        alone = sampler.sample(**inputs)
        in_batch = indices(sampled, index, len(inputs["gt_instances"]) * add, 7 * add)
        assert torch.equal(in_batch[0], alone.pos_inds)
        assert torch.equal(in_batch[1], alone.neg_inds)
        total += alone.avg_factor
    assert sampled.avg_factor == total


def test_images_of_a_batch_draw_apart_and_by_equal_chances():
    # 6 of 8 positives and 6 of 16 negatives, whichever image of the batch.
    sampler = RandomSampler(12, 0.5, add_gt_as_proposals=False)
    torch.manual_seed(0)
    repeats = 3000
    sampled = sampler.sample_batch(assigned([[1] * 8 + [0] * 16] * repeats))
    chances = torch.tensor([6 / 8] * 8 + [6 / 16] * 16)
    frequency = (sampled.positive | sampled.negative).float().mean(dim=0)
    assert ((frequency - chances).abs() < 5 * (chances * (1 - chances) / repeats).sqrt()).all()
    # Two given positives are drawn together in C(6, 4) / C(8, 6) of the images.
    together = (sampled.positive[:, 0] & sampled.positive[:, 1]).float().mean()
    assert abs(together - 15 / 28) < 5 * (15 / 28 * 13 / 28 / repeats) ** 0.5
    assert len(sampled.positive.unique(dim=0)) == 28


def test_a_seed_gives_one_draw_and_another_seed_another():
    sampler, inputs = RandomSampler(64, 0.25), batch([image(500, 5, seed) for seed in range(2)])

    def drawn(seed):
        seed_everything(seed)
        return sampler.sample_batch(*inputs)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(first.positive, again.positive)
    assert torch.equal(first.negative, again.negative)
    assert not torch.equal(first.negative, other.negative)


def test_restoring_the_state_of_a_checkpoint_repeats_the_draw():
    sampler, inputs = RandomSampler(64, 0.25), image(500, 5, seed=0)
    sampler.sample(**inputs)
    state = rng_state()
    first = sampler.sample(**inputs)
    sampler.sample(**inputs)
    set_rng_state(state)
    again = sampler.sample(**inputs)
    assert torch.equal(first.pos_inds, again.pos_inds)
    assert torch.equal(first.neg_inds, again.neg_inds)


RULES = (
    {"type": "RandomSampler"},
    {"type": "InstanceBalancedPosSampler"},
    {"type": "IoUBalancedNegSampler", "floor_thr": 0.2, "floor_fraction": 0.4},
    {
        "type": "CombinedSampler",
        "pos_sampler": {"type": "InstanceBalancedPosSampler"},
        "neg_sampler": {"type": "IoUBalancedNegSampler", "num_bins": 2},
    },
)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    num=st.integers(0, 30),
    fraction=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]),
    bound=st.sampled_from([-1, 0, 1, 2.5]),
    add=st.booleans(),
    num_priors=st.integers(0, 40),
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    positive=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_counts_are_the_quotas(rule, num, fraction, bound, add, num_priors, counts, positive, seed):
    """All that may be taken is, and nothing beyond; positives are assigned ones, negatives background."""
    config = {**rule, "num": num, "pos_fraction": fraction, "neg_pos_ub": bound, "add_gt_as_proposals": add}
    images = [image(num_priors, count, seed + index, positive) for index, count in enumerate(counts)]
    torch.manual_seed(seed)
    sampled = TASK_UTILS.build(config).sample_batch(*batch(images))
    assert (sampled.gt_inds[sampled.positive] > 0).all()
    assert (sampled.gt_inds[sampled.negative] == 0).all()
    num_positive = (sampled.gt_inds > 0).sum(dim=1).clamp(max=int(num * fraction))
    assert torch.equal(sampled.positive.sum(dim=1), num_positive)
    allowed = num - num_positive
    if bound >= 0:
        allowed = allowed.minimum((bound * num_positive.clamp(min=1)).long())
    num_negative = (sampled.gt_inds == 0).sum(dim=1).minimum(allowed)
    assert torch.equal(sampled.negative.sum(dim=1), num_negative)
    assert sampled.avg_factor == (num_positive.clamp(min=1) + num_negative.clamp(min=1)).sum()


def test_nothing_to_sample():
    nothing = assigned([[]] * 2)
    sampled = RandomSampler(8, 0.5, add_gt_as_proposals=False).sample_batch(
        nothing._replace(gt_inds=nothing.gt_inds.long())
    )
    assert sampled.positive.shape == (2, 0)
    assert sampled.avg_factor == 4


def test_everything_ignored():
    sampled = RandomSampler(8, 0.5, add_gt_as_proposals=False).sample_batch(assigned([[-1] * 5]))
    assert not (sampled.positive | sampled.negative).any()
    assert sampled.avg_factor == 2


def test_objects_cannot_be_added_without_them():
    priors = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="RandomSampler: add_gt_as_proposals=True needs priors"):
        RandomSampler(8, 0.5).sample_batch(assigned([[1, 0, 0]]))
    with pytest.raises(ValueError, match="RandomSampler: add_gt_as_proposals=True needs ground_truth"):
        RandomSampler(8, 0.5).sample_batch(assigned([[1, 0, 0]]), priors)


def test_half_precision_priors_stay_exact_objects():
    inputs = image(10, 2, seed=0)
    inputs["pred_instances"].priors = inputs["pred_instances"].priors.half()
    result = RandomSampler(100, 1.0).sample(**inputs)
    assert torch.equal(result.pos_priors[:2], inputs["gt_instances"].bboxes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": -1, "pos_fraction": 0.5}, "RandomSampler: num must be a whole number of at least 0, got -1"),
        ({"num": "8", "pos_fraction": 0.5}, "RandomSampler: num must be a whole number of at least 0, got '8'"),
        ({"num": 8.5, "pos_fraction": 0.5}, "RandomSampler: num must be a whole number of at least 0, got 8.5"),
        ({"num": 8, "pos_fraction": 1.5}, r"RandomSampler: pos_fraction must be in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_quotas_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomSampler(**arguments)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="no argument 'pos_fractoin'; did you mean 'pos_fraction'"):
        TASK_UTILS.build({"type": "RandomSampler", "num": 8, "pos_fraction": 0.5, "pos_fractoin": 0.25})


def test_objects_only():
    """A step in which the proposals of an image are none."""
    gt = GroundTruth.from_instances([image(0, 3, seed=0)["gt_instances"]])
    none = BatchAssignResult(*(torch.zeros(1, 0, dtype=kind) for kind in (torch.int64, torch.float32, torch.int64)))
    sampled = RandomSampler(8, 0.5).sample_batch(none, torch.zeros(0, 4), gt)
    assert sampled.positive.tolist() == [[True] * 3]
