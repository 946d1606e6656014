"""Which parameters learn how fast: the rules of ``paramwise_cfg``.

MMDetection's rules scale the optimizer's own ``lr`` and ``weight_decay``; Detectron2's set them. Both are here,
and end in as few parameter groups as there are different settings.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.logging import print_log
from torch import nn

from detkit.engine.optim.param_groups import reduce_param_groups
from detkit.registry import check_keys, nearest

__all__ = ["NORMS", "RULE_KEYS", "NamedParameter", "ParamRules", "param_groups", "trainable_parameters"]

RULE_KEYS = frozenset(
    {"custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult", "flat_decay_mult"}
    | {"dcn_offset_lr_mult", "bypass_duplicate", "weight_decay_norm", "weight_decay_bias", "bias_rules_on_norms"}
    | {"lr_factor_func", "overrides"}
)
NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm of any dimension
    nn.GroupNorm,
    nn.LayerNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
# Likeness at which a name that nothing matches is a slip of the pen: 'backbnoe' is one, 'encoder' where the model
# has a decoder only is not.
_SLIP = 0.87


class NamedParameter(NamedTuple):
    """A parameter and where it is.

    Attributes:
        name: In full, such as ``backbone.conv1.weight``.
        parameter: The parameter.
        module: The one that holds it.
        parent: The one that holds ``module``; the model itself for its own children.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    parent: nn.Module


def trainable_parameters(model: nn.Module) -> Iterator[NamedParameter]:
    """Every parameter that requires a gradient, once, however many modules share it."""
    modules = dict(model.named_modules())
    seen: set[nn.Parameter] = set()
    for prefix, module in modules.items():
        parent = modules[prefix.rpartition(".")[0]]
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield NamedParameter(f"{prefix}.{name}" if prefix else name, parameter, module, parent)


def param_groups(
    model: nn.Module,
    rules: Mapping[str, Any] | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters of ``model``, for any optimizer of torch.

    Args:
        model: Its frozen parameters are left out, its shared ones taken once.
        rules: See :class:`ParamRules`.
        lr: What the rules scale; groups of parameters that no rule concerns say it too.
        weight_decay: The same.

    Returns:
        As few groups as there are different settings, in the order of the model.

    Raises:
        KeyError: A rule that does not exist, or a name in it that is misspelt.
        ValueError: Rules that contradict each other, or scale an ``lr`` or ``weight_decay`` that is not given.
    """
    chosen = ParamRules(rules or {}, lr, weight_decay)
    groups = [{"params": [one.parameter], **chosen.settings(one)} for one in trainable_parameters(model)]
    chosen.check_names(model)
    return reduce_param_groups(groups)


class ParamRules:
    """The settings of each parameter.

    The longest of ``custom_keys`` that is part of a parameter's name decides for it. Else the first that applies
    sets the weight decay: that of norm layers, of biases, of depth-wise convolutions, of flat parameters.
    ``lr_factor_func`` scales the rate that results, and ``overrides`` have the last word.

    Args:
        rules: Factors on ``lr`` and ``weight_decay``:

            * ``custom_keys``: part of a name -> ``lr_mult``, ``decay_mult`` and further settings as they are,
            * ``bias_lr_mult``: biases outside norm layers,
            * ``dcn_offset_lr_mult``: ``conv_offset`` of deformable convolutions, which bias rules leave alone,
            * ``norm_decay_mult``, ``bias_decay_mult``, ``dwconv_decay_mult``, ``flat_decay_mult`` (one dimension),
            * ``lr_factor_func``: from a parameter's full name to a factor on its learning rate;

            values as they are to be:

            * ``weight_decay_norm``, ``weight_decay_bias``: in place of the factor of the same kind,
            * ``overrides``: last part of a name (``bias``) -> settings;

            and ``bias_rules_on_norms`` (False): biases of norm layers are biases first, as in Detectron2.
            ``bypass_duplicate`` is accepted and changes nothing: a shared parameter is always taken once.
        lr: Of the optimizer; None if it has none.
        weight_decay: Of the optimizer; None if it is not set.

    Raises:
        KeyError: A rule that does not exist.
        TypeError: ``custom_keys`` or ``overrides`` is no dict of dicts, or ``lr_factor_func`` no function.
        ValueError: Two rules for the same setting, or a rule that scales an ``lr`` that is not given.
    """

    def __init__(self, rules: Mapping[str, Any], lr: float | None, weight_decay: float | None) -> None:
        check_keys(rules, RULE_KEYS, "paramwise_cfg")
        self.rules = {key: value for key, value in rules.items() if value is not None}
        self.base = {"lr": lr, "weight_decay": weight_decay}
        self.custom = self._nested("custom_keys")
        self.overrides = self._nested("overrides")
        self.lr_factor: Callable[[str], float] | None = self.rules.get("lr_factor_func")
        if self.lr_factor is not None and not callable(self.lr_factor):
            raise TypeError(f"paramwise_cfg.lr_factor_func: a function was expected, got {self.lr_factor!r}")
        self._check_conflicts()
        # Longest first, then by alphabet: MMDetection's order.
        self._custom_order = sorted(self.custom, key=lambda key: (-len(key), key))
        self._used: set[tuple[str, str]] = set()

    def settings(self, one: NamedParameter) -> dict[str, Any]:
        """Hyperparameters of one parameter."""
        found = {key: value for key, value in self.base.items() if value is not None}
        custom = next((key for key in self._custom_order if key in one.name), None)
        found.update(self._by_kind(one) if custom is None else self._by_key(custom))
        if self.lr_factor is not None:
            found["lr"] *= self.lr_factor(one.name)
        leaf = one.name.rpartition(".")[2]
        if leaf in self.overrides:
            self._used.add(("overrides", leaf))
            found.update(self.overrides[leaf])
        return found

    def check_names(self, model: nn.Module) -> None:
        """Refuse names in rules that no parameter has but for a slip of the pen; warn of others.

        MMDetection's configs share keys such as ``absolute_pos_embed`` between models with and without it.
        """
        names = [name for name, _ in model.named_parameters()]
        for rule, keys in (("custom_keys", self.custom), ("overrides", self.overrides)):
            for key in keys:
                # A key of frozen parameters is right, and has nothing to do.
                if (rule, key) not in self._used and not any(key in name for name in names):
                    _report_unused(f"paramwise_cfg.{rule}.{key}", key, names)

    def _by_key(self, key: str) -> dict[str, Any]:
        self._used.add(("custom_keys", key))
        given = dict(self.custom[key])
        found: dict[str, Any] = {}
        for setting, factor in (("lr", "lr_mult"), ("weight_decay", "decay_mult")):
            if factor in given:
                found[setting] = self._scaled(setting, given.pop(factor), f"custom_keys.{key}.{factor}")
        return {**found, **given}

    def _by_kind(self, one: NamedParameter) -> dict[str, Any]:
        found: dict[str, Any] = {}
        is_norm = isinstance(one.module, NORMS)
        is_offset = _is_deformable_offset(one)
        is_bias = one.name.rpartition(".")[2] == "bias" and not is_offset
        biases_first = self.rules.get("bias_rules_on_norms", False)
        if is_bias and (biases_first or not is_norm) and "bias_lr_mult" in self.rules:
            found["lr"] = self._scaled("lr", self.rules["bias_lr_mult"], "bias_lr_mult")
        if is_offset and "dcn_offset_lr_mult" in self.rules:
            found["lr"] = self._scaled("lr", self.rules["dcn_offset_lr_mult"], "dcn_offset_lr_mult")
        kinds = [
            (is_norm, "norm_decay_mult", "weight_decay_norm"),
            (is_bias, "bias_decay_mult", "weight_decay_bias"),
            (_is_depthwise(one.module), "dwconv_decay_mult", None),
            (one.parameter.ndim == 1 and not is_offset, "flat_decay_mult", None),
        ]
        if biases_first:
            kinds[:2] = kinds[1::-1]
        for applies, factor, value in kinds:
            if applies and value in self.rules:
                return {**found, "weight_decay": self.rules[value]}
            if applies and factor in self.rules:
                return {**found, "weight_decay": self._scaled("weight_decay", self.rules[factor], factor)}
        return found

    def _scaled(self, setting: str, factor: float, rule: str) -> float:
        base = self.base[setting]
        if base is None:
            raise ValueError(
                f"optim_wrapper.optimizer.{setting}: must be set, since paramwise_cfg scales it for {rule!r}"
            )
        return base * factor

    def _nested(self, rule: str) -> dict[str, Mapping[str, Any]]:
        given = self.rules.get(rule, {})
        if not isinstance(given, Mapping) or not all(isinstance(value, Mapping) for value in given.values()):
            raise TypeError(f"paramwise_cfg.{rule}: a dict from names to dicts of settings was expected, got {given!r}")
        return dict(given)

    def _check_conflicts(self) -> None:
        for factor, value in (
            ("norm_decay_mult", "weight_decay_norm"),
            ("bias_decay_mult", "weight_decay_bias"),
        ):
            if factor in self.rules and value in self.rules:
                raise ValueError(f"paramwise_cfg: {factor} and {value} set the same weight decay; give one of them")
        bias = self.overrides.get("bias", {})
        for rule, setting in (
            ("bias_lr_mult", "lr"),
            ("bias_decay_mult", "weight_decay"),
            ("weight_decay_bias", "weight_decay"),
        ):
            if rule in self.rules and setting in bias:
                raise ValueError(f"paramwise_cfg: {rule} and overrides.bias.{setting} set the same; give one of them")
        for rule in ("bias_lr_mult", "lr_factor_func"):
            if rule in self.rules:
                self._scaled("lr", 1.0, rule)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.in_channels == module.groups


def _is_deformable_offset(one: NamedParameter) -> bool:
    """Whether it belongs to the convolution that predicts where a deformable one samples."""
    in_offset = one.name.split(".")[-2:-1] == ["conv_offset"]
    return in_offset and any("DeformConv" in cls.__name__ for cls in type(one.parent).__mro__)


def _report_unused(place: str, key: str, names: list[str]) -> None:
    length = key.count(".") + 1
    parts = [name.split(".") for name in names]
    same_length = {".".join(part[i : i + length]) for part in parts for i in range(len(part) - length + 1)}
    close = " or ".join(map(repr, nearest(key, same_length, count=3)))
    message = f"optim_wrapper.{place}: it decides for no parameter of the model"
    if any(_is_slip(key, name) for name in same_length):
        raise KeyError(f"{message}; did you mean {close}?")
    print_log(f"{message}; names most like it: {close}", logger="current", level=logging.WARNING)


def _is_slip(key: str, name: str) -> bool:
    """Whether ``key`` is ``name`` misspelt: letters in another order, or few of them others."""
    # 'layer5' of a trunk with four layers is none: configs name the stages of larger models too.
    one, other = (re.sub(r"\d", "", text) for text in (key, name))
    return one != other and (sorted(one) == sorted(other) or difflib.SequenceMatcher(None, one, other).ratio() >= _SLIP)
