"""How hyper-parameters change over a run, beside mmengine's schedulers."""

from detkit.engine.schedulers.build import build_schedulers
from detkit.engine.schedulers.composed import CompositeMultiplier, WarmupMultiplier
from detkit.engine.schedulers.lr_multiplier import (
    LRMultiplier,
    WarmupCosineLR,
    WarmupMultiStepLR,
    WarmupStepWithFixedGammaLR,
)
from detkit.engine.schedulers.multipliers import (
    ConstantMultiplier,
    CosineMultiplier,
    ExpMultiplier,
    LinearMultiplier,
    Multiplier,
    PolyMultiplier,
)
from detkit.engine.schedulers.quadratic import QuadraticWarmupLR
from detkit.engine.schedulers.restore import restore_schedulers, schedulers_state
from detkit.engine.schedulers.step_multipliers import MultiStepMultiplier, StepMultiplier, StepWithFixedGamma

__all__ = [
    "CompositeMultiplier",
    "ConstantMultiplier",
    "CosineMultiplier",
    "ExpMultiplier",
    "LRMultiplier",
    "LinearMultiplier",
    "MultiStepMultiplier",
    "Multiplier",
    "PolyMultiplier",
    "QuadraticWarmupLR",
    "StepMultiplier",
    "StepWithFixedGamma",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupMultiplier",
    "WarmupStepWithFixedGammaLR",
    "build_schedulers",
    "restore_schedulers",
    "schedulers_state",
]
