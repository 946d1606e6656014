"""Assigned priors for tests: random images, and the same images one by one and as a batch."""

import torch
from mmengine.structures import InstanceData

from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import AssignResult, BatchAssignResult


def image(num_priors, num_gts, seed, positive=0.3, ignored=0.1):
    """Assignment, priors and objects of one image, as a sampler takes them."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def boxes(count):
        corner = rand(count, 2) * 80
        return torch.cat([corner, corner + 5 + rand(count, 2) * 40], dim=1)

    draw = rand(num_priors)
    which = (rand(num_priors) * num_gts).long() + 1
    gt_inds = torch.where(draw < positive * (num_gts > 0), which, torch.where(draw > 1 - ignored, -1, 0))
    gt_labels = (rand(num_gts) * 3).long()
    labels = torch.full_like(gt_inds, -1)
    labels[gt_inds > 0] = gt_labels[gt_inds[gt_inds > 0] - 1]
    overlaps = torch.where(gt_inds > 0, 0.5 + rand(num_priors) / 2, rand(num_priors) / 2)
    return {
        "assign_result": AssignResult(num_gts, gt_inds, overlaps, labels),
        "pred_instances": InstanceData(priors=boxes(num_priors)),
        "gt_instances": InstanceData(bboxes=boxes(num_gts), labels=gt_labels),
    }


def batch(images):
    """The images, of equally many priors, as ``sample_batch`` takes them."""
    assigned = [one["assign_result"] for one in images]
    result = BatchAssignResult(
        torch.stack([one.gt_inds for one in assigned]),
        torch.stack([one.max_overlaps for one in assigned]),
        torch.stack([one.labels for one in assigned]),
    )
    priors = torch.stack([one["pred_instances"].priors for one in images])
    return result, priors, GroundTruth.from_instances([one["gt_instances"] for one in images])


def indices(sampled, index, num_gts, num_padded):
    """Indices of the positives and negatives of one image of a batch, as ``sample`` counts them.

    Of the ``num_padded`` objects in front, the image has ``num_gts``.
    """
    keep = torch.ones(sampled.positive.shape[1], dtype=torch.bool)
    keep[num_gts:num_padded] = False
    assert not (sampled.positive | sampled.negative)[index][~keep].any()
    return [mask[index][keep].nonzero().squeeze(1) for mask in (sampled.positive, sampled.negative)]
