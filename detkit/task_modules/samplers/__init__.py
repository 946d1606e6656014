"""Samplers: which of the assigned priors are trained on."""

from detkit.task_modules.samplers.batched import sample_batch
from detkit.task_modules.samplers.combined_sampler import CombinedSampler, build_sampler
from detkit.task_modules.samplers.instance_balanced_pos_sampler import InstanceBalancedPosSampler
from detkit.task_modules.samplers.iou_balanced_neg_sampler import IoUBalancedNegSampler
from detkit.task_modules.samplers.mask_pseudo_sampler import MaskPseudoSampler, MaskSamplingResult
from detkit.task_modules.samplers.multi_instance_random_sampler import (
    MultiInsRandomSampler,
    MultiInstanceSamplingResult,
)
from detkit.task_modules.samplers.ohem_sampler import OHEMSampler
from detkit.task_modules.samplers.pseudo_sampler import PseudoSampler
from detkit.task_modules.samplers.random_sampler import RandomSampler
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, CompactSample, SamplingResult
from detkit.task_modules.samplers.score_hlr_sampler import ScoreHLRSampler

__all__ = [
    "BatchSamplingResult",
    "CombinedSampler",
    "CompactSample",
    "InstanceBalancedPosSampler",
    "IoUBalancedNegSampler",
    "MaskPseudoSampler",
    "MaskSamplingResult",
    "MultiInsRandomSampler",
    "MultiInstanceSamplingResult",
    "OHEMSampler",
    "PseudoSampler",
    "RandomSampler",
    "SamplingResult",
    "ScoreHLRSampler",
    "build_sampler",
    "sample_batch",
]
