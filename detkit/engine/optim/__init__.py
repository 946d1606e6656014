"""Optimizers' wrappers and parameter groups; optimizers themselves are torch's."""

from detkit.engine.optim.amp import AmpOptimWrapper
from detkit.engine.optim.averaging import (
    AveragedModel,
    ExpMomentumEMA,
    ExponentialMovingAverage,
    LinearWarmupEMA,
    MomentumAnnealingEMA,
    StochasticWeightAverage,
)
from detkit.engine.optim.constructor import DefaultOptimWrapperConstructor, build_optim_wrapper
from detkit.engine.optim.layer_decay import LearningRateDecayOptimizerConstructor
from detkit.engine.optim.param_groups import expand_param_groups, reduce_param_groups, summary_group_id, summary_lr
from detkit.engine.optim.param_rules import param_groups
from detkit.engine.optim.wrappers import OptimWrapper

__all__ = [
    "AmpOptimWrapper",
    "AveragedModel",
    "DefaultOptimWrapperConstructor",
    "ExpMomentumEMA",
    "ExponentialMovingAverage",
    "LearningRateDecayOptimizerConstructor",
    "LinearWarmupEMA",
    "MomentumAnnealingEMA",
    "OptimWrapper",
    "StochasticWeightAverage",
    "build_optim_wrapper",
    "expand_param_groups",
    "param_groups",
    "reduce_param_groups",
    "summary_group_id",
    "summary_lr",
]
