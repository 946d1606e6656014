"""Which samples a process takes, and in which order."""

from detkit.datasets.samplers.inference import InferenceSampler
from detkit.datasets.samplers.repeat_factor import RepeatFactorTrainingSampler, repeat_factors
from detkit.datasets.samplers.training import TrainingSampler

__all__ = ["InferenceSampler", "RepeatFactorTrainingSampler", "TrainingSampler", "repeat_factors"]
