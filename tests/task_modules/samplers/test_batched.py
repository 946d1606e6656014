"""Sampling of a batch: no waiting, one graph, and samplers of others image by image."""

import pytest
import torch
from no_sync import NoSync
from task_modules.samplers.images import batch, image
from task_modules.samplers.roi_heads import FormulaHead

from detkit.models.dense_heads.targets.anchor_targets import anchor_targets
from detkit.registry import TASK_UTILS
from detkit.task_modules import (
    DeltaXYWHBBoxCoder,
    MaxIoUAssigner,
    OHEMSampler,
    PseudoSampler,
    RandomSampler,
    SamplingResult,
    build_sampler,
    sample_batch,
)

CONFIGS = (
    {"type": "PseudoSampler"},
    {"type": "MaskPseudoSampler"},
    {"type": "RandomSampler", "num": 16, "pos_fraction": 0.25},
    {"type": "RandomSampler", "num": 16, "pos_fraction": 0.25, "neg_pos_ub": 2.5, "add_gt_as_proposals": False},
    {"type": "InstanceBalancedPosSampler", "num": 16, "pos_fraction": 0.25},
    {"type": "IoUBalancedNegSampler", "num": 16, "pos_fraction": 0.25, "floor_thr": 0.1, "floor_fraction": 0.2},
    {
        "type": "CombinedSampler",
        "num": 16,
        "pos_fraction": 0.25,
        "pos_sampler": {"type": "InstanceBalancedPosSampler"},
        "neg_sampler": {"type": "IoUBalancedNegSampler"},
    },
)
IMAGES = [image(60, count, seed) for seed, count in enumerate((3, 0))]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["type"])
def test_nothing_waits_for_the_device(config):
    sampler, inputs = TASK_UTILS.build(config), batch(IMAGES)
    with NoSync():
        sampler.sample_batch(*inputs).compact(16)


def test_hard_examples_wait_for_nothing_either():
    sampler, inputs, feats = OHEMSampler(16, 0.25, context=FormulaHead()), batch(IMAGES), [torch.zeros(2, 1, 2, 2)]
    with NoSync():
        sampler.sample_batch(*inputs, feats=feats)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["type"])
def test_one_graph(config):
    sampler, inputs = TASK_UTILS.build(config), batch(IMAGES)

    def call(*args):
        sampled = sampler.sample_batch(*args)
        return *sampled, *sampled.compact(16)

    torch.manual_seed(0)
    expected = call(*inputs)
    torch._dynamo.reset()
    torch.manual_seed(0)
    found = torch.compile(call, fullgraph=True, backend="eager")(*inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 3])
def test_pseudo_sampler_takes_all(count):
    inputs = [image(40, count, seed) for seed in range(3)]
    sampled = PseudoSampler().sample_batch(*batch(inputs))
    results = [PseudoSampler().sample(**one) for one in inputs]
    for index, result in enumerate(results):
        assert torch.equal(sampled.positive[index].nonzero().squeeze(1), result.pos_inds)
        assert torch.equal(sampled.negative[index].nonzero().squeeze(1), result.neg_inds)
    assert sampled.avg_factor == sum(result.avg_factor for result in results)


class FirstTwo:
    """A user's sampler: two positives, all negatives; adds the objects as MMDetection's base class does."""

    def __init__(self, add):
        self.add = add
        self.seen = []

    def sample(self, assign_result, pred_instances, gt_instances, **kwargs):
        self.seen.append(kwargs)
        priors, flags = pred_instances.priors, torch.zeros(len(pred_instances.priors), dtype=torch.uint8)
        if self.add and len(gt_instances) > 0:
            priors = torch.cat([gt_instances.bboxes, priors])
            assign_result.add_gt_(gt_instances.labels)
            flags = torch.cat([torch.ones(len(gt_instances), dtype=torch.uint8), flags])
        positive = (assign_result.gt_inds > 0).nonzero().squeeze(1)[:2]
        negative = (assign_result.gt_inds == 0).nonzero().squeeze(1)
        return SamplingResult(positive, negative, priors, gt_instances.bboxes, assign_result, flags)


@pytest.mark.parametrize("add", [True, False])
def test_a_users_sampler_goes_image_by_image(add):
    images = [image(20, count, seed) for seed, count in enumerate((1, 0, 3))]
    sampler = FirstTwo(add)
    sampled = sample_batch(sampler, *batch(images))
    total = 0
    for index, inputs in enumerate(images):
        # The image's own objects are prepended to a copy, as batch() above has stacked the assignment before.
        alone = FirstTwo(add).sample(**inputs)
        for mask, priors in ((sampled.positive, alone.pos_priors), (sampled.negative, alone.neg_priors)):
            assert torch.equal(sampled.priors[index][mask[index]], priors)
        assert torch.equal(sampled.labels[index][sampled.positive[index]], alone.pos_gt_labels)
        total += alone.avg_factor
    assert sampled.avg_factor == total


def test_a_users_sampler_of_images_without_objects():
    sampled = sample_batch(FirstTwo(True), *batch([image(20, 0, seed=0)]))
    assert sampled.positive.shape == (1, 20)
    assert sampled.is_gt is None


def test_feats_reach_a_users_sampler_image_by_image():
    sampler, feats = FirstTwo(False), [torch.arange(2.0).view(2, 1, 1, 1)]
    sample_batch(sampler, *batch(IMAGES), feats=feats, epoch=3)
    assert [kwargs["feats"][0].tolist() for kwargs in sampler.seen] == [[[[[0.0]]]], [[[[1.0]]]]]
    assert [kwargs["epoch"] for kwargs in sampler.seen] == [3, 3]


class TestAnchorTargets:
    def targets(self, sampler):
        _, priors, ground_truth = batch(IMAGES)
        assigner = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4)
        return anchor_targets(priors[0], ground_truth, None, assigner, sampler, DeltaXYWHBBoxCoder(), num_classes=3)

    def test_a_quota_limits_what_is_learnt(self):
        everything = self.targets(PseudoSampler())
        sampled = self.targets(RandomSampler(10, 0.5, add_gt_as_proposals=False))
        assert (sampled.label_weights > 0).sum(dim=1).tolist() == [10, 10]
        assert ((everything.label_weights > 0) | (sampled.label_weights == 0)).all()
        assert sampled.avg_factor == 21  # no positive in the second image, which counts as one

    def test_a_users_sampler(self):
        targets = self.targets(FirstTwo(False))
        assert (targets.bbox_weights.sum(dim=1) <= 2).all()

    def test_objects_as_proposals_are_refused(self):
        sampler = build_sampler({"type": "RandomSampler", "num": 10, "pos_fraction": 0.5})
        with pytest.raises(ValueError, match="RandomSampler adds objects as proposals"):
            self.targets(sampler)
