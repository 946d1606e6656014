"""Which samples a process takes, and in which order."""

from detkit.datasets.samplers.class_aware import ClassAwareSampler
from detkit.datasets.samplers.inference import InferenceSampler
from detkit.datasets.samplers.repeat_factor import RepeatFactorTrainingSampler, repeat_factors
from detkit.datasets.samplers.training import TrainingSampler

__all__ = ["ClassAwareSampler", "InferenceSampler", "RepeatFactorTrainingSampler", "TrainingSampler", "repeat_factors"]
