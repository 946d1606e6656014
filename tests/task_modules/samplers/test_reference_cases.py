"""Samplers against MMDetection 3.3.0."""

import pytest
import torch
from reference import arguments, assert_same, cases, instances
from task_modules.samplers.roi_heads import TableHead

from detkit.registry import TASK_UTILS
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import AssignResult, BatchAssignResult

NAMES = (
    "CombinedSampler",
    "InstanceBalancedPosSampler",
    "IoUBalancedNegSampler",
    "MaskPseudoSampler",
    "MultiInsRandomSampler",
    "OHEMSampler",
    "PseudoSampler",
    "RandomSampler",
    "ScoreHLRSampler",
)
ALL = [pytest.param(*case.values, id=f"{name}-{case.id}") for name in NAMES for case in cases(f"samplers/{name}")]
RANDOM = [case for case in ALL if "repeats" in case.values[0]["inputs"]]
FIXED = [case for case in ALL if "repeats" not in case.values[0]["inputs"]]


def built(case):
    """The sampler of a case and what it is called with."""
    inputs = arguments(case["inputs"])
    inputs["assign_result"] = AssignResult(**inputs["assign_result"])
    if "batch_gt_instances_ignore" in inputs:
        inputs["batch_gt_instances_ignore"] = instances(case["inputs"]["batch_gt_instances_ignore"])
    inputs.pop("repeats", None)
    stub = inputs.pop("stub", None)
    context = {} if stub is None else {"context": TableHead(stub)}
    return TASK_UTILS.build(case["config"], default_args=context), inputs


@pytest.mark.parametrize("case", FIXED)
def test_same_sample(case):
    sampler, inputs = built(case)
    result = sampler.sample(**inputs)
    if isinstance(result, tuple):
        result = {"sampling_result": result[0], "neg_label_weights": result[1]}
    assert_same(result, case["outputs"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FIXED)
def test_sampling_leaves_its_inputs_as_they_were(case):
    """MMDetection prepends the objects to the caller's assignment, or adds 1 to its indices."""
    sampler, inputs = built(case)
    before = {name: value.clone() for name, value in case["inputs"]["assign_result"].items() if name != "num_gts"}
    sampler.sample(**inputs)
    assert_same(inputs["assign_result"], before, rtol=0, atol=0)


@pytest.mark.parametrize("case", RANDOM)
def test_same_numbers_of_samples(case):
    sampler, inputs = built(case)
    expected = case["outputs"]
    for seed in range(10):
        torch.manual_seed(seed)
        result = sampler.sample(**inputs)
        assert expected["num_pos_min"] <= len(result.pos_inds) <= expected["num_pos_max"]
        assert expected["num_neg_min"] <= len(result.neg_inds) <= expected["num_neg_max"]


@pytest.mark.parametrize("case", RANDOM)
def test_same_distribution(case):
    """Each prior is drawn as often, of 4,000 images in one call, as the reference drew it in its calls."""
    sampler, inputs = built(case)
    assigned, gt, repeats = inputs["assign_result"], inputs["gt_instances"], 4000
    fields = (assigned.gt_inds, assigned.max_overlaps, assigned.labels)
    batch = BatchAssignResult(*(field.expand(repeats, -1) for field in fields))
    ground_truth = GroundTruth.from_instances([gt] * repeats)
    torch.manual_seed(0)
    sampled = sampler.sample_batch(batch, inputs["pred_instances"].priors, ground_truth)
    frequency = (sampled.positive | sampled.negative).float().mean(dim=0)
    deviation = (frequency * (1 - frequency) / case["inputs"]["repeats"]).sqrt()
    assert ((frequency - case["outputs"]["frequency"]).abs() <= 5 * deviation + 1e-6).all()
