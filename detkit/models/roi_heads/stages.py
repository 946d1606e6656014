"""What the heads of a cascade share: a part of each stage, and the names and weights of its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detkit.models.roi_heads.train_cfg import RoITrainCfg
from detkit.registry import MODELS

__all__ = ["OfStages", "build_stages", "check_stages", "stage_losses", "train_cfg_of_stages"]

Cfg = Mapping[str, Any]
# A config for each stage, or one for all.
OfStages = Cfg | Sequence[Cfg]


def build_stages(cfg: OfStages, num_stages: int, name: str) -> Any:
    """ModuleList of the registered part of each stage: those of a list of configs, or of one config for all.

    Raises:
        ValueError: Another number than there are stages; ``name`` is the argument's, for the message.
    """
    cfgs = [cfg] * num_stages if isinstance(cfg, Mapping) else cfg
    check_stages(cfgs, num_stages, name)
    return nn.ModuleList(MODELS.build(one) for one in cfgs)


def check_stages(values: Sequence[Any], num_stages: int, name: str) -> None:
    """Refuse another number of values than there are stages."""
    if len(values) != num_stages:
        raise ValueError(f"{name} must have one entry for each of num_stages={num_stages} stages, got {len(values)}")


def train_cfg_of_stages(train_cfg: Sequence[Cfg] | None, context: Any) -> list[RoITrainCfg]:
    """What ``train_cfg`` says to each stage of the RoI head ``context``, whose ``current_stage`` it moves meanwhile.

    Raises:
        TypeError: It is no list of dicts.
        ValueError: There are more or fewer than stages.
    """
    name = type(context).__name__
    if isinstance(train_cfg, Mapping):
        raise TypeError(
            f"{name}: train_cfg must be a list with a dict for each of num_stages={context.num_stages} stages, got a "
            f"dict with the keys {', '.join(train_cfg)}"
        )
    if train_cfg is not None:
        check_stages(train_cfg, context.num_stages, f"{name}: train_cfg")
    found = []
    for stage in range(context.num_stages):
        # A sampler that runs the head takes the box head of its own stage.
        context.current_stage = stage
        cfg = None if train_cfg is None else train_cfg[stage]
        found.append(RoITrainCfg.of(cfg, context, name=f"train_cfg[{stage}]"))
    context.current_stage = 0
    return found


def stage_losses(losses: Mapping[str, Tensor], stage: int, weight: float) -> dict[str, Tensor]:
    """``s{stage}.`` before the names, losses weighed; what is only logged, such as an accuracy, is not."""
    return {f"s{stage}.{name}": value * weight if "loss" in name else value for name, value in losses.items()}
