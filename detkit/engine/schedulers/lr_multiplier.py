"""A learning rate in closed form: its base value times a curve, whatever it was in the step before.

Detectron2's ``LRMultiplier`` (``detectron2/solver/lr_scheduler.py``). mmengine's schedulers make each value of the one
before, and restore the schedule they were saved with in place of the config's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler.param_scheduler import INF
from torch import Tensor

from detkit.engine.schedulers.composed import WarmupMultiplier
from detkit.engine.schedulers.multipliers import (
    CosineMultiplier,
    Multiplier,
    build_multiplier,
    place,
)
from detkit.engine.schedulers.step_multipliers import MultiStepMultiplier, StepWithFixedGamma
from detkit.registry import PARAM_SCHEDULERS, nearest

__all__ = ["LRMultiplier", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"]


@PARAM_SCHEDULERS.register_module()
class LRMultiplier(_ParamScheduler):
    """Sets ``base value * multiplier((step - begin) / (end - begin))`` in each parameter group.

    Before ``begin`` and after ``end`` it leaves the value alone; at ``end`` it sets the curve's last one. What it has
    to remember is the base values and the number of steps, so that a resumed run follows the schedule that the config
    has then, from the learning rate that it was started with.

    Args:
        optimizer: The optimizer or its wrapper.
        multiplier: The curve or its config, such as ``dict(type='CosineMultiplier')``.
        begin: Step at which the curve starts.
        end: Step at which it ends; the runner gives the length of the run where the config has none.
        last_step: Step before the next one; -1 at the start of a run.
        by_epoch: Count epochs, and not iterations as by default.
        param_name: What is set: ``'lr'``, or another number of the parameter groups, such as ``'weight_decay'``.

    Attributes:
        base_values: The value of each group that the curve is a factor of.
        last_step: Steps so far.

    Raises:
        TypeError: ``multiplier`` is none.
        ValueError: ``end`` is not known, or not after ``begin``, or one of them is no step.
        KeyError: The parameter groups have no ``param_name``.
    """

    by_epoch = False  # mmengine's schedulers have no such attribute and count epochs by default

    def __init__(
        self,
        optimizer: Any,
        multiplier: Multiplier | Mapping[str, Any],
        begin: int = 0,
        end: int = INF,
        last_step: int = -1,
        by_epoch: bool = False,
        param_name: str = "lr",
    ) -> None:
        for name, step in (("begin", begin), ("end", end)):
            if not isinstance(step, int) or step < 0:
                raise ValueError(f"{place(self, name)}: a step, 0 or more, was expected, got {step!r}")
        if end >= INF:
            raise ValueError(
                f"{place(self, 'end')}: the number of steps must be known; outside of a runner set end=max_iters"
            )
        if end <= begin:
            raise ValueError(f"{place(self, 'end')}: a step after begin={begin} was expected, got {end}")
        self.multiplier = build_multiplier(multiplier)
        self._curve = self.multiplier.over(end - begin)
        for group in optimizer.param_groups:
            if param_name not in group:
                close = nearest(param_name, [name for name in group if name != "params"])
                raise KeyError(f"{place(self, 'param_name')}: parameter groups have no {param_name!r}, but {close}")
            if isinstance(group[param_name], Tensor):
                # mmengine would take the tensor itself for the base value; it is written to in place.
                group.setdefault(f"initial_{param_name}", float(group[param_name]))
        super().__init__(optimizer, param_name, begin, end, last_step, by_epoch)

    def step(self) -> None:
        """Count a step, and set the values for the next one."""
        self.last_step += 1
        self._set_values()

    def get_last_value(self) -> list[float]:
        """The value of each parameter group now."""
        return [group[self.param_name] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """What was done so far, and, to be compared with, the schedule."""
        return {
            "base_values": list(self.base_values),
            "last_step": self.last_step,
            "param_name": self.param_name,
            "begin": self.begin,
            "end": self.end,
            "multiplier": repr(self.multiplier),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over base values and number of steps, and set the values that this schedule has there."""
        self.base_values = list(state_dict["base_values"])
        self.last_step = state_dict["last_step"]
        self._set_values()

    @classmethod
    def build_iter_from_epoch(cls, *args: Any, **kwargs: Any) -> LRMultiplier:
        """Refuse ``convert_to_iter_based``: it is so by default."""
        raise ValueError(
            f"{cls.__name__} counts iterations: leave convert_to_iter_based and by_epoch out, and give milestones as "
            "fractions of the run, for example milestones=[8 / 12, 11 / 12]"
        )

    def _set_values(self) -> None:
        done = self.last_step - self.begin
        length = self.end - self.begin
        if not 0 <= done <= length:
            return
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_values):
            raise ValueError(
                f"{type(self).__name__}: has {len(self.base_values)} base values for {len(groups)} parameter groups; "
                "groups must be there before the schedule is built"
            )
        factor = self._curve.value(done / length)
        name = self.param_name
        for group, base in zip(groups, self.base_values, strict=True):
            if isinstance(group[name], Tensor):  # compiled and capturable optimizers hold on to it
                group[name].fill_(base * factor)
            else:
                group[name] = base * factor


@PARAM_SCHEDULERS.register_module()
class WarmupMultiStepLR(LRMultiplier):
    """:class:`LRMultiplier` of :class:`MultiStepMultiplier` after a warm-up, by Detectron2's ``LR_SCHEDULER_NAME``.

    Args:
        optimizer: The optimizer or its wrapper.
        milestones: ``SOLVER.STEPS``; those at or after the end are dropped with a warning.
        gamma: ``SOLVER.GAMMA``.
        warmup_factor: ``SOLVER.WARMUP_FACTOR``.
        warmup_iters: ``SOLVER.WARMUP_ITERS``.
        warmup_method: ``SOLVER.WARMUP_METHOD``, ``'linear'`` or ``'constant'``.
        rescale_interval: ``SOLVER.RESCALE_INTERVAL``.
        end: ``SOLVER.MAX_ITER``; the runner gives the length of the run.
        last_step: See :class:`LRMultiplier`.
    """

    def __init__(
        self,
        optimizer: Any,
        milestones: Sequence[float],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
        end: int = INF,
        last_step: int = -1,
    ) -> None:
        curve = MultiStepMultiplier(milestones, gamma)
        warmed = WarmupMultiplier(curve, warmup_factor, warmup_iters, None, warmup_method, rescale_interval)
        super().__init__(optimizer, warmed, end=end, last_step=last_step)


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRMultiplier):
    """:class:`LRMultiplier` of :class:`CosineMultiplier` after a warm-up, by Detectron2's ``LR_SCHEDULER_NAME``.

    Detectron2's deprecated class of this name multiplies warm-up and cosine instead; that is mmengine's chain of
    ``LinearLR(end=warmup_iters + 1)`` and ``CosineAnnealingLR``.

    Args:
        optimizer: The optimizer or its wrapper.
        eta_min_ratio: ``SOLVER.BASE_LR_END / SOLVER.BASE_LR``, in [0, 1].
        warmup_factor: ``SOLVER.WARMUP_FACTOR``.
        warmup_iters: ``SOLVER.WARMUP_ITERS``.
        warmup_method: ``SOLVER.WARMUP_METHOD``, ``'linear'`` or ``'constant'``.
        rescale_interval: ``SOLVER.RESCALE_INTERVAL``.
        end: ``SOLVER.MAX_ITER``; the runner gives the length of the run.
        last_step: See :class:`LRMultiplier`.

    Raises:
        ValueError: ``eta_min_ratio`` is out of range.
    """

    def __init__(
        self,
        optimizer: Any,
        eta_min_ratio: float = 0.0,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
        end: int = INF,
        last_step: int = -1,
    ) -> None:
        if not 0 <= eta_min_ratio <= 1:
            raise ValueError(f"{place(self, 'eta_min_ratio')}: a number in [0, 1] was expected, got {eta_min_ratio}")
        curve = CosineMultiplier(end=eta_min_ratio)
        warmed = WarmupMultiplier(curve, warmup_factor, warmup_iters, None, warmup_method, rescale_interval)
        super().__init__(optimizer, warmed, end=end, last_step=last_step)


@PARAM_SCHEDULERS.register_module()
class WarmupStepWithFixedGammaLR(LRMultiplier):
    """:class:`LRMultiplier` of :class:`StepWithFixedGamma` after a warm-up, by Detectron2's ``LR_SCHEDULER_NAME``.

    Args:
        optimizer: The optimizer or its wrapper.
        num_decays: ``SOLVER.NUM_DECAYS``.
        gamma: ``SOLVER.GAMMA``.
        warmup_factor: ``SOLVER.WARMUP_FACTOR``.
        warmup_iters: ``SOLVER.WARMUP_ITERS``.
        warmup_method: ``SOLVER.WARMUP_METHOD``, ``'linear'`` or ``'constant'``.
        rescale_interval: ``SOLVER.RESCALE_INTERVAL``.
        end: ``SOLVER.MAX_ITER``; the runner gives the length of the run.
        last_step: See :class:`LRMultiplier`.
    """

    def __init__(
        self,
        optimizer: Any,
        num_decays: int = 3,
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
        end: int = INF,
        last_step: int = -1,
    ) -> None:
        curve = StepWithFixedGamma(num_decays, gamma)
        warmed = WarmupMultiplier(curve, warmup_factor, warmup_iters, None, warmup_method, rescale_interval)
        super().__init__(optimizer, warmed, end=end, last_step=last_step)
