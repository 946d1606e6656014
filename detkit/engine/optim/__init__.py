"""Optimizers' wrappers and parameter groups; optimizers themselves are torch's."""

from detkit.engine.optim.constructor import DefaultOptimWrapperConstructor
from detkit.engine.optim.wrappers import AmpOptimWrapper, OptimWrapper

__all__ = ["AmpOptimWrapper", "DefaultOptimWrapperConstructor", "OptimWrapper"]
