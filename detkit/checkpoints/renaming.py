"""Layers of another project under the names that they have here, by rules on the layers' names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

__all__ = ["Layers", "Rule", "of_anchors", "rename_layers"]


class Layers:
    """The layers of a state dict: ``head.conv`` of ``head.conv.weight``.

    Args:
        state: Tensors by name.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        towers: dict[tuple[str, int], list[int]] = defaultdict(list)
        for key, value in state.items():
            layer, _dot, kind = key.rpartition(".")
            parent, _dot, place = layer.rpartition(".")
            if kind == "weight" and place.isdigit() and isinstance(value, Tensor):
                towers[parent, value.dim()].append(int(place))
        self._towers = {parent: sorted(places) for parent, places in towers.items()}

    def norm(self, layer: str) -> str:
        """What MMDetection calls this normalisation: only batch norms keep statistics."""
        return "bn" if f"{layer}.running_mean" in self.state else "gn"

    def is_norm(self, layer: str) -> bool:
        """Whether it is a normalisation: its weight has one dimension."""
        return self._dim(layer) == 1

    def rank(self, layer: str) -> int:
        """Its place among the layers of the same kind in a ``Sequential``: 1 of ``conv.3``, behind ``conv.0``."""
        parent, _dot, place = layer.rpartition(".")
        return self._towers[parent, self._dim(layer)].index(int(place))

    def _dim(self, layer: str) -> int:
        # A convolution in front of a batch norm has no bias, but every layer has a weight.
        weight = self.state.get(f"{layer}.weight")
        return weight.dim() if isinstance(weight, Tensor) else 0


# A pattern of the whole name of a layer, and what makes the new name of the match.
Rule = tuple[str, Callable[[re.Match[str], Layers], str]]


def rename_layers(state: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """Give layers the name that the first rule makes of theirs; what no rule knows keeps its name.

    Raises:
        ValueError: Two become one.
    """
    layers = Layers(state)
    compiled = [(re.compile(pattern), make) for pattern, make in rules]
    renamed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in state.items():
        layer, _dot, kind = key.rpartition(".")
        found = next(((match, make) for pattern, make in compiled if (match := pattern.fullmatch(layer))), None)
        name = key if found is None else f"{found[1](found[0], layers)}.{kind}"
        if name in renamed:
            raise ValueError(f"{origin[name]!r} and {key!r} of the checkpoint would both be {name!r} here")
        renamed[name], origin[name] = value, key
    return renamed


def of_anchors(state: Mapping[str, Any], layer: str, anchors: int) -> list[tuple[str, Tensor]]:
    """Weight and bias of a prediction layer, split by anchor: (A, rows per anchor, ...)."""
    names = [name for kind in ("weight", "bias") if (name := f"{layer}.{kind}") in state]
    return [(name, state[name].reshape(anchors, -1, *state[name].shape[1:])) for name in names]
