"""Sampling balanced over objects, over overlaps, and both."""

import pytest
import torch

from detkit.registry import TASK_UTILS
from detkit.task_modules import (
    BatchAssignResult,
    CombinedSampler,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    RandomSampler,
    build_sampler,
)

REPEATS = 2000


def repeated(gt_inds, overlaps=None):
    """One image, many times."""
    gt_inds = torch.tensor(gt_inds)
    overlaps = torch.zeros(gt_inds.shape) if overlaps is None else torch.tensor(overlaps)
    fields = (gt_inds, overlaps, torch.where(gt_inds > 0, 0, -1))
    return BatchAssignResult(*(field.expand(REPEATS, -1) for field in fields))


def frequency(mask):
    return mask.float().mean(dim=0)


def assert_chances(mask, expected):
    """Within five standard deviations."""
    expected = torch.tensor(expected)
    deviation = (expected * (1 - expected) / REPEATS).sqrt()
    assert ((frequency(mask) - expected).abs() <= 5 * deviation).all(), frequency(mask)


class TestInstanceBalanced:
    def test_objects_share_the_positives(self):
        # 4 positives of 2 objects: 4 / 2 + 1 = 3 of each come first, so all 2 of the one and 3 of the 18 of the
        # other, and 4 of these 5 are drawn.
        sampler = InstanceBalancedPosSampler(8, 0.5, add_gt_as_proposals=False)
        torch.manual_seed(0)
        sampled = sampler.sample_batch(repeated([1] * 2 + [2] * 18 + [0] * 4))
        assert_chances(sampled.positive, [4 / 5] * 2 + [3 / 18 * 4 / 5] * 18 + [0.0] * 4)
        assert (sampled.positive.sum(dim=1) == 4).all()

    def test_round_is_to_the_even_number(self):
        # 5 positives of 2 objects: round(2.5) + 1 = 3, and not 4, of each come first.
        sampler = InstanceBalancedPosSampler(5, 1.0, add_gt_as_proposals=False)
        torch.manual_seed(0)
        counts = sampler.sample_batch(repeated([1] * 10 + [2] * 10)).positive.view(REPEATS, 2, 10).sum(dim=2)
        assert counts.min() == 2
        assert counts.max() == 3

    def test_the_quota_is_filled_with_others(self):
        """MMDetection may fill it with priors it has drawn already, and then has fewer."""
        # 8 positives of 4 objects: 3 of each come first, but three have 1 only, so that 2 more are needed.
        sampler = InstanceBalancedPosSampler(8, 1.0, add_gt_as_proposals=False)
        torch.manual_seed(0)
        sampled = sampler.sample_batch(repeated([1, 2, 3] + [4] * 20))
        assert (sampled.positive.sum(dim=1) == 8).all()
        assert_chances(sampled.positive, [1.0] * 3 + [5 / 20] * 20)

    def test_negatives_are_random(self):
        sampler = InstanceBalancedPosSampler(8, 0.5, add_gt_as_proposals=False)
        torch.manual_seed(0)
        sampled = sampler.sample_batch(repeated([1] * 10 + [0] * 20))
        assert_chances(sampled.negative, [0.0] * 10 + [4 / 20] * 20)


class TestIoUBalanced:
    def build(self, **arguments):
        return IoUBalancedNegSampler(**{"num": 6, "pos_fraction": 0.0, "add_gt_as_proposals": False, **arguments})

    def test_intervals_share_the_negatives(self):
        # Highest overlap 0.9, the positive's: intervals [0, 0.3), [0.3, 0.6), [0.6, 0.9); two of each.
        overlaps = [0.9] + [0.1] * 12 + [0.4] * 4 + [0.7] * 2
        torch.manual_seed(0)
        sampled = self.build().sample_batch(repeated([1] + [0] * 18, overlaps))
        assert_chances(sampled.negative, [0.0] + [2 / 12] * 12 + [2 / 4] * 4 + [1.0] * 2)

    def test_an_empty_interval_leaves_its_share_to_all(self):
        # Two of the 12, two of the 4, then two of the 12 that are left.
        overlaps = [0.9] + [0.1] * 12 + [0.4] * 4
        torch.manual_seed(0)
        sampled = self.build().sample_batch(repeated([1] + [0] * 16, overlaps))
        low, middle = 2 / 12 + 10 / 12 * 2 / 12, 2 / 4 + 2 / 4 * 2 / 12
        assert_chances(sampled.negative, [0.0] + [low] * 12 + [middle] * 4)

    def test_easy_ones_get_their_fraction(self):
        # 6 * (1 - 1/3) = 4 above the floor, of one interval here, and 2 below it.
        overlaps = [0.9] + [0.05] * 10 + [0.5] * 8
        sampler = self.build(floor_thr=0.1, floor_fraction=1 / 3, num_bins=1)
        torch.manual_seed(0)
        sampled = sampler.sample_batch(repeated([1] + [0] * 18, overlaps))
        assert_chances(sampled.negative, [0.0] + [2 / 10] * 10 + [4 / 8] * 8)

    def test_hard_ones_take_over_where_easy_ones_lack(self):
        overlaps = [0.05] + [0.5] * 10
        sampler = self.build(floor_thr=0.1, floor_fraction=0.5, num_bins=1)
        torch.manual_seed(0)
        sampled = sampler.sample_batch(repeated([0] * 11, overlaps))
        assert_chances(sampled.negative, [1.0] + [5 / 10] * 10)

    def test_the_configuration_does_not_change_with_use(self):
        """MMDetection's floor_thr of -1 is 0 from its second call on, and negatives without overlap then come last."""
        sampler = self.build()
        overlaps = [0.9] + [0.0] * 3 + [0.2] * 3 + [0.4] * 3 + [0.7] * 3
        torch.manual_seed(0)
        for _ in range(2):
            sampled = sampler.sample_batch(repeated([1] + [0] * 12, overlaps))
            assert sampler.floor_thr == -1
            assert_chances(sampled.negative, [0.0] + [2 / 6] * 6 + [2 / 3] * 6)

    def test_overlaps_are_needed(self):
        assigned = repeated([0] * 8)._replace(max_overlaps=None)
        with pytest.raises(ValueError, match="IoUBalancedNegSampler: the assigner has no max_overlaps"):
            self.build().sample_batch(assigned)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"floor_thr": -0.5}, "floor_thr must be at least 0, or -1 for none, got -0.5"),
            ({"floor_fraction": 2}, r"floor_fraction must be in \[0, 1\], got 2"),
            ({"num_bins": 0}, "num_bins must be at least 1, got 0"),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=f"IoUBalancedNegSampler: {message}"):
            self.build(**arguments)


class TestCombined:
    config = {
        "type": "CombinedSampler",
        "num": 8,
        "pos_fraction": 0.5,
        "add_gt_as_proposals": False,
        "pos_sampler": {"type": "InstanceBalancedPosSampler"},
        "neg_sampler": {"type": "IoUBalancedNegSampler", "num_bins": 2},
    }

    def test_each_draws_its_own(self):
        # Positives as of TestInstanceBalanced; of 4 negatives, 2 of each interval below and above 0.45.
        overlaps = [0.9] * 20 + [0.1] * 8 + [0.5] * 4
        torch.manual_seed(0)
        sampled = TASK_UTILS.build(self.config).sample_batch(repeated([1] * 2 + [2] * 18 + [0] * 12, overlaps))
        assert_chances(sampled.positive, [4 / 5] * 2 + [3 / 18 * 4 / 5] * 18 + [0.0] * 12)
        assert_chances(sampled.negative, [0.0] * 20 + [2 / 8] * 8 + [2 / 4] * 4)

    def test_both_take_over_the_shared_arguments(self):
        sampler = TASK_UTILS.build({**self.config, "neg_pos_ub": 3})
        for part in (sampler.pos_sampler, sampler.neg_sampler):
            assert (part.num, part.pos_fraction, part.neg_pos_ub, part.add_gt_as_proposals) == (8, 0.5, 3, False)

    def test_what_a_part_sets_itself_stays(self):
        part = {"type": "RandomSampler", "pos_fraction": 1.0}
        assert TASK_UTILS.build({**self.config, "pos_sampler": part}).pos_sampler.pos_fraction == 1.0

    def test_wrong_keys_are_refused_with_their_place(self):
        part = {"type": "IoUBalancedNegSampler", "num_bin": 2}
        with pytest.raises(TypeError, match=r"neg_sampler\.num_bin: .*did you mean 'num_bins'"):
            TASK_UTILS.build({**self.config, "neg_sampler": part})
        with pytest.raises(KeyError, match=r"pos_sampler\.type: 'RandomSample'.*'RandomSampler'"):
            TASK_UTILS.build({**self.config, "pos_sampler": {"type": "RandomSample"}})

    def test_a_sampler_without_a_rule_is_refused(self):
        with pytest.raises(
            TypeError, match=r"CombinedSampler: pos_sampler must draw by a rule.*PseudoSampler does not"
        ):
            CombinedSampler({"type": "PseudoSampler"}, {"type": "RandomSampler"}, 8, 0.5)


def test_heads_share_themselves_with_the_samplers_that_ask():
    head = object.__new__(type("Head", (), {"bbox_head": None}))
    assert isinstance(
        build_sampler({"type": "RandomSampler", "num": 8, "pos_fraction": 0.5}, context=head), RandomSampler
    )
    config = {"type": "OHEMSampler", "num": 8, "pos_fraction": 0.5}
    assert build_sampler(config, context=head).context is head
    combined = {**TestCombined.config, "neg_sampler": {"type": "OHEMSampler"}}
    assert build_sampler(combined, context=head).neg_sampler.context is head
    with pytest.raises(TypeError, match="needs the argument 'context'"):
        build_sampler(config)
