"""Samplers: which of the assigned priors are trained on."""

from detkit.task_modules.samplers.pseudo_sampler import PseudoSampler
from detkit.task_modules.samplers.sampling_result import BatchSamplingResult, SamplingResult

__all__ = ["BatchSamplingResult", "PseudoSampler", "SamplingResult"]
