"""Which parameters learn how fast: parameter groups from ``paramwise_cfg``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from torch import nn

from detkit.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, build, check_keys, nearest

__all__ = ["DefaultOptimWrapperConstructor"]

_KEYS = {
    "custom_keys",
    "bias_lr_mult",
    "bias_decay_mult",
    "norm_decay_mult",
    "dwconv_decay_mult",
    "flat_decay_mult",
    "bypass_duplicate",
}
_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm of any dimension
    nn.GroupNorm,
    nn.LayerNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DefaultOptimWrapperConstructor:
    """Builds an optimizer and its wrapper; parameters with equal settings share a group.

    For each parameter the longest matching name of ``custom_keys`` decides alone. Else the first rule that
    applies sets the weight decay: ``norm_decay_mult`` for weights and biases of norm layers,
    ``bias_decay_mult``, ``dwconv_decay_mult`` for depth-wise convolutions, ``flat_decay_mult`` for one
    dimension; ``bias_lr_mult`` sets the rate of biases outside norm layers. Frozen parameters are left out.

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: The rules above, as factors on the optimizer's own ``lr`` and ``weight_decay``;
            ``custom_keys`` maps a part of a name to ``lr_mult``, ``decay_mult`` and settings of its group.
            ``bypass_duplicate`` is accepted: a shared parameter is always taken once.

    Raises:
        KeyError: A rule that nobody reads, or a custom key that no parameter's name contains.
        ValueError: The optimizer does not have the setting that a rule scales.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        check_keys(paramwise_cfg, _KEYS, "paramwise_cfg")
        if "optimizer" not in optim_wrapper_cfg:
            raise KeyError("optim_wrapper: the key 'optimizer' is missing, for example dict(type='SGD', lr=0.01)")
        self.wrapper_cfg = {"type": "OptimWrapper", **optim_wrapper_cfg}
        self.optimizer_cfg = self.wrapper_cfg.pop("optimizer")
        self.rules = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapped optimizer of ``model``."""
        inner: Any = model.module if is_model_wrapper(model) else model
        params: Any = self._groups(inner) if self.rules else list(inner.parameters())
        optimizer = build(self.optimizer_cfg, OPTIMIZERS, params=params)
        return build(self.wrapper_cfg, OPTIM_WRAPPERS, optimizer=optimizer)

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        used: set[str] = set()
        groups: dict[str, dict[str, Any]] = {}
        for name, module, parameter in _parameters(model):
            settings = self._settings(name, module, parameter, used)
            groups.setdefault(repr(sorted(settings.items())), {**settings, "params": []})["params"].append(parameter)
        for key in self.rules.get("custom_keys", {}):
            if key not in used:
                names = [name for name, _ in model.named_modules() if name]
                close = " or ".join(map(repr, nearest(key, names, count=3)))
                raise KeyError(
                    f"optim_wrapper.paramwise_cfg.custom_keys.{key}: it decides for no parameter of the model; "
                    f"did you mean {close}?"
                )
        for group in groups.values():
            own = ", ".join(f"{key}={value}" for key, value in group.items() if key != "params") or "no change"
            print_log(f"parameter group of {len(group['params'])}: {own}", logger="current")
        return list(groups.values())

    def _settings(self, name: str, module: nn.Module, parameter: nn.Parameter, used: set[str]) -> dict[str, Any]:
        custom = self.rules.get("custom_keys", {})
        for key in sorted(custom, key=lambda key: (-len(key), key)):
            if key in name:
                used.add(key)
                given = dict(custom[key])
                settings = {"lr": self._base("lr", key) * given.pop("lr_mult", 1.0)}
                if "decay_mult" in given:
                    settings["weight_decay"] = self._base("weight_decay", key) * given.pop("decay_mult")
                return {**settings, **given}
        settings = {}
        is_norm = isinstance(module, _NORMS)
        is_bias = name.rpartition(".")[2] == "bias"
        is_depthwise = isinstance(module, nn.Conv2d) and module.in_channels == module.groups
        if is_bias and not is_norm and self.rules.get("bias_lr_mult") is not None:
            settings["lr"] = self._base("lr", "bias_lr_mult") * self.rules["bias_lr_mult"]
        for applies, rule in (
            (is_norm, "norm_decay_mult"),
            (is_bias, "bias_decay_mult"),
            (is_depthwise, "dwconv_decay_mult"),
            (parameter.ndim == 1, "flat_decay_mult"),
        ):
            if applies and self.rules.get(rule) is not None:
                settings["weight_decay"] = self._base("weight_decay", rule) * self.rules[rule]
                break
        return settings

    def _base(self, setting: str, rule: str) -> float:
        """The optimizer's own ``lr`` or ``weight_decay``: as configured, else as its signature has it."""
        if setting in self.optimizer_cfg:
            return self.optimizer_cfg[setting]
        kind = self.optimizer_cfg["type"]
        cls = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
        parameter = inspect.signature(cls).parameters.get(setting) if cls is not None else None
        if parameter is None or not isinstance(parameter.default, (int, float)):
            raise ValueError(
                f"optim_wrapper.optimizer.{setting}: must be set, since paramwise_cfg scales it for {rule!r}"
            )
        return parameter.default


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every trainable parameter once, with its full name and the module that holds it."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}" if prefix else name, module, parameter
