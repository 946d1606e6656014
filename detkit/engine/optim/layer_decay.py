"""Learning rates that fall from the head to the stem, for pretrained trunks.

After BEiT (Bao et al., https://arxiv.org/abs/2106.08254) and ConvNeXt (Liu et al., https://arxiv.org/abs/2201.03545);
arguments and numbers are those of MMDetection's constructor of this name, which knows ConvNeXt only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any, NamedTuple

from torch import nn

from detkit.engine.optim.constructor import DefaultOptimWrapperConstructor
from detkit.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ["LearningRateDecayOptimizerConstructor", "trunk_layers"]

_DECAYS = ("norm_decay_mult", "bias_decay_mult", "flat_decay_mult", "weight_decay_norm", "weight_decay_bias")
# Learned positions and tokens: what they say is not a weight of anything.
_POSITIONS = ("pos_embed", "absolute_pos_embed", "relative_position_bias_table", "cls_token", "mask_token")
_STEM = re.compile(r"(conv1|[bgi]n1|stem|patch_embed|features\.0|pos_embed|absolute_pos_embed|cls_token|mask_token)\b")
_LAST = -1  # the last block of a stage, whichever that is


class _Place(NamedTuple):
    """Where in a trunk a parameter is: its stage, None for the stem, and its block there."""

    stage: int | None
    block: int
    between: bool = False  # belongs to ConvNeXt's layers between stages


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LearningRateDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Scales the learning rate by ``decay_rate`` for each layer between a parameter and the head.

    What is outside ``backbone``, and norms of its outputs, learn at the full rate. Layers are read off the names of
    parameters: ResNet and its like, ConvNeXt, Swin, plain vision transformers; MMDetection's names and torchvision's.

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: ``decay_rate``, in (0, 1]; ``decay_type``: ``'layer_wise'`` (default) or ``'stage_wise'``;
            ``num_layers``: at least as many as there are, by default as many; and the rules of
            ``DefaultOptimWrapperConstructor``. Unless one of those sets a weight decay, flat parameters, biases and
            learned positions have none.

    Raises:
        KeyError: ``decay_rate`` is missing.
        ValueError: A value out of range, or a trunk whose layers the names do not tell.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if "decay_rate" not in self.rules:
            raise KeyError("optim_wrapper.paramwise_cfg.decay_rate is missing: for example 0.7")
        self.decay_rate: float = self.rules.pop("decay_rate")
        self.decay_type: str = self.rules.pop("decay_type", "layer_wise")
        self.num_layers: int | None = self.rules.pop("num_layers", None)
        if not 0 < self.decay_rate <= 1:
            raise ValueError(f"optim_wrapper.paramwise_cfg.decay_rate: a value in (0, 1], got {self.decay_rate}")
        if self.decay_type not in ("layer_wise", "stage_wise"):
            raise ValueError(
                f"optim_wrapper.paramwise_cfg.decay_type: 'layer_wise' or 'stage_wise', got {self.decay_type!r}"
            )

    @classmethod
    def _keys(cls) -> frozenset[str]:
        return super()._keys() | {"decay_rate", "decay_type", "num_layers"}

    def _rules(self, model: nn.Module) -> Mapping[str, Any]:
        names = [name for name, _ in model.named_parameters()]
        layers, count = trunk_layers(names, self.decay_type == "stage_wise")
        total = count if self.num_layers is None else self.num_layers
        if total < count:
            raise ValueError(
                f"optim_wrapper.paramwise_cfg.num_layers: the trunk has {count} layers, got {total}; leave it out to "
                "have them counted"
            )
        own = self.rules.get("lr_factor_func") or (lambda _: 1.0)

        def factor(name: str) -> float:
            layer = layers[name]
            return own(name) * (1.0 if layer is None else self.decay_rate ** (total + 1 - layer))

        rules = {**self.rules, "lr_factor_func": factor}
        decay = self.optimizer_cfg.get("weight_decay") or self._optimizer_settings().get("weight_decay")
        if decay and not any(rule in rules for rule in _DECAYS):
            positions = {leaf for name in names if (leaf := name.rpartition(".")[2]) in _POSITIONS}
            rules["flat_decay_mult"] = rules["bias_decay_mult"] = 0.0
            rules["overrides"] = {**{leaf: {"weight_decay": 0.0} for leaf in positions}, **rules.get("overrides", {})}
        return rules


def trunk_layers(names: Iterable[str], by_stage: bool = False) -> tuple[dict[str, int | None], int]:
    """The layer of each parameter, and how many layers the trunk has.

    Args:
        names: Of all parameters of a model, the trunk's below ``backbone``.
        by_stage: A stage is one layer; else a block is, except that ConvNeXt's first two stages and its last are one
            each and its third has one for three blocks.

    Returns:
        Layer by name, 0 for the stem, from 1 on for the others, None for what lies behind the trunk; and their count.

    Raises:
        ValueError: The names have no layers.
    """
    places = {name: _place(name) for name in names}
    depths: dict[int, int] = {}
    for place in places.values():
        if place is not None and place.stage is not None:
            depths[place.stage] = max(depths.get(place.stage, 0), place.block + 1)
    if not depths:
        trunk = [name for name in places if "backbone." in name][:3]
        raise ValueError(
            "layer-wise decay knows the layers of ResNet-like trunks, ConvNeXt, Swin and vision transformers by the "
            f"names of their parameters; it finds none in {', '.join(trunk) or 'a model without a backbone'}"
        )
    stages = range(max(depths) + 1)
    grouped = len(stages) == 4 and any(place is not None and place.between for place in places.values())
    if by_stage:
        sizes = [1 for _ in stages]
    elif grouped:
        sizes = [1, 1, ceil(depths.get(2, 0) / 3), 1]
    else:
        sizes = [depths.get(stage, 0) for stage in stages]

    def layer(place: _Place | None) -> int | None:
        if place is None:
            return None
        if place.stage is None or (by_stage and place.between):  # MMDetection counts those among the stem
            return 0
        block = 0 if by_stage or (grouped and place.stage != 2) else place.block // 3 if grouped else place.block
        block = sizes[place.stage] - 1 if place.block == _LAST else block
        return 1 + sum(sizes[: place.stage]) + block

    return {name: layer(place) for name, place in places.items()}, sum(sizes)


def _place(name: str) -> _Place | None:
    """Where in the trunk; None for what is not in it, or behind its last block."""
    _, found, inner = name.replace("_orig_mod.", "").rpartition("backbone.")
    inner = inner.removeprefix("body.")
    if not found:
        return None
    if match := re.match(r"layer(\d+)\.(\d+)\.", inner):  # ResNet counts stages from 1
        return _Place(int(match[1]) - 1, int(match[2]))
    if match := re.match(r"(?:stages|layers)\.(\d+)\.(?:blocks\.)?(\d+)\.", inner):
        return _Place(int(match[1]), int(match[2]))
    if match := re.match(r"(?:stages|layers)\.(\d+)\.downsample\.", inner):  # Swin's ends a stage
        return _Place(int(match[1]), _LAST)
    if match := re.match(r"downsample_layers\.(\d+)\.", inner):  # ConvNeXt's begins one
        stage = int(match[1])
        return _Place(stage or None, 0, between=True)
    if (match := re.match(r"features\.(\d+)\.(\d+)\.", inner)) and int(match[1]):  # torchvision
        index, block = int(match[1]), int(match[2])
        return _Place(index // 2, block if index % 2 else 0)
    if match := re.match(r"(?:blocks|layers)\.(\d+)\.", inner):
        return _Place(0, int(match[1]))
    return _Place(None, 0) if _STEM.match(inner) else None
