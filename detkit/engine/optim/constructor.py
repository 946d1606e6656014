"""Optimizers and their wrappers from config: parameter groups by rule, the fastest kernels where a GPU has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn

from detkit.engine.data.dataloader import build_function
from detkit.engine.optim.param_groups import describe_param_groups, reduce_param_groups
from detkit.engine.optim.param_rules import RULE_KEYS, param_groups
from detkit.engine.parallel.inner_model import inner_model
from detkit.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS, build, building, check_keys, find

__all__ = ["DefaultOptimWrapperConstructor", "build_optim_wrapper"]

# Those whose fused kernel runs on CUDA; Adagrad's runs on a CPU only.
_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
# A config that says one of these has chosen its kernels.
_KERNELS = ("fused", "foreach", "capturable", "differentiable")


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DefaultOptimWrapperConstructor:
    """Builds an optimizer and its wrapper; parameters with equal settings share a group.

    Without ``paramwise_cfg`` all parameters are in one group, frozen ones too, as in mmengine: what is frozen now
    may be set free later. With it, frozen parameters are left out. On CUDA, SGD, Adam and AdamW use their fused
    kernels unless the config chooses between ``fused`` and ``foreach`` itself.

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: The rules of :class:`~detkit.engine.optim.param_rules.ParamRules`, as factors on the
            optimizer's own ``lr`` and ``weight_decay`` or as values. ``lr_factor_func`` may be the name of a
            function in the registry FUNCTIONS, or ``dict(type=name, ...)`` with arguments for it.

    Raises:
        KeyError: A rule that nobody reads, or a misspelt name in one.
        ValueError: Rules that contradict each other, or scale a setting that the optimizer does not have.
    """

    def __init__(self, optim_wrapper_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None) -> None:
        check_keys(paramwise_cfg, self._keys(), "paramwise_cfg")
        if "optimizer" not in optim_wrapper_cfg:
            raise KeyError("optim_wrapper: the key 'optimizer' is missing, for example dict(type='SGD', lr=0.01)")
        self.wrapper_cfg = {"type": "OptimWrapper", **optim_wrapper_cfg}
        self.optimizer_cfg: dict[str, Any] = self.wrapper_cfg.pop("optimizer")
        self.rules = dict(paramwise_cfg or {})
        self.has_rules = bool(self.rules)
        if self.rules.get("lr_factor_func") is not None:
            self.rules["lr_factor_func"] = build_function(
                self.rules["lr_factor_func"], "optim_wrapper.paramwise_cfg.lr_factor_func"
            )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the wrapped optimizer of ``model``."""
        inner = inner_model(model)
        params: Any = self._groups(inner) if self.has_rules else list(inner.parameters())
        optimizer = build({**self.optimizer_cfg, **self._kernels(inner)}, OPTIMIZERS, params=params)
        frozen = sum(not parameter.requires_grad for parameter in inner.parameters())
        print_log(
            f"{type(optimizer).__name__}, {frozen} frozen parameters {'left out' if self.has_rules else 'among them'}\n"
            f"{describe_param_groups(optimizer.param_groups)}",
            logger="current",
        )
        return build(self.wrapper_cfg, OPTIM_WRAPPERS, optimizer=optimizer)

    @classmethod
    def _keys(cls) -> frozenset[str]:
        """What ``paramwise_cfg`` may hold."""
        return RULE_KEYS

    def _rules(self, model: nn.Module) -> Mapping[str, Any]:
        """The rules for this model."""
        return self.rules

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        settings = self._optimizer_settings()
        rates = {key: settings.get(key) for key in ("lr", "weight_decay")}
        # A default of 0 is no decision that decay_mult could scale: MMDetection asks for one, too.
        scaled = {**rates, "weight_decay": rates["weight_decay"] or self.optimizer_cfg.get("weight_decay")}
        groups = param_groups(model, self._rules(model), **scaled)
        for group in groups:
            check_keys({key: None for key in group if key != "params"}, settings, "optimizer (by paramwise_cfg)")
        known = {key: value for key, value in rates.items() if value is not None}
        return reduce_param_groups([{**known, **group} for group in groups])

    def _optimizer_settings(self) -> dict[str, Any]:
        """The optimizer's hyperparameters: as configured, else as its signature has them; None for one without."""
        kind = self.optimizer_cfg["type"]
        cls = find(kind, OPTIMIZERS) if isinstance(kind, str) else kind
        parameters: Sequence[inspect.Parameter] = (
            list(inspect.signature(cls).parameters.values())[1:] if cls is not None else ()
        )
        defaults = {one.name: None if one.default is one.empty else one.default for one in parameters}
        return {**defaults, **{key: value for key, value in self.optimizer_cfg.items() if key != "type"}}

    def _kernels(self, model: nn.Module) -> dict[str, bool]:
        """``fused=True`` where the config leaves the choice and every parameter allows it."""
        kind = self.optimizer_cfg["type"]
        cls = find(kind, OPTIMIZERS) if isinstance(kind, str) else kind
        if cls not in _FUSED or any(key in self.optimizer_cfg for key in _KERNELS):
            return {}
        if "fused" not in inspect.signature(cls).parameters:
            return {}
        fits = all(parameter.is_cuda and parameter.is_floating_point() for parameter in model.parameters())
        one_device = len({parameter.device for parameter in model.parameters()}) == 1
        return {"fused": True} if fits and one_device else {}


def build_optim_wrapper(model: nn.Module, cfg: Mapping[str, Any]) -> OptimWrapper:
    """Build the optimizer of ``model`` and its wrapper from the ``optim_wrapper`` of a config."""
    options = dict(cfg)
    kind = options.pop("constructor", None) or "DefaultOptimWrapperConstructor"
    rules = options.pop("paramwise_cfg", None)
    with building("optim_wrapper", cfg):
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            {"type": kind, "optim_wrapper_cfg": options, "paramwise_cfg": rules}
        )
        return constructor(model)
