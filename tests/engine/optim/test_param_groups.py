"""Parameter groups: the numbers of Detectron2's solver and MMDetection's reference cases.

Where the two disagree, MMDetection's rules hold, and ``bias_rules_on_norms`` gives Detectron2's.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import cases
from torch import nn

from detkit.engine import DefaultOptimWrapperConstructor
from detkit.engine.optim import (
    expand_param_groups,
    param_groups,
    param_rules,
    reduce_param_groups,
    summary_group_id,
    summary_lr,
)
from detkit.engine.optim.param_groups import describe_param_groups
from detkit.registry import FUNCTIONS, MODELS, find

p1, p2, p3, p4, p5, p6 = (nn.Parameter(torch.full((1,), float(index))) for index in range(6))


def indices(groups: list[dict[str, Any]]) -> list[list[int]]:
    return [[int(parameter.item()) + 1 for parameter in group["params"]] for group in groups]


def test_expanding_lets_later_groups_overwrite_settings():
    given = [
        {"params": [p1, p2, p3, p4], "lr": 1.0, "weight_decay": 3.0},
        {"params": [p2, p3, p5], "lr": 2.0, "momentum": 2.0},
        {"params": p1, "weight_decay": 4.0},
    ]
    copy = [{**group} for group in given]
    groups = expand_param_groups(given)
    assert indices(groups) == [[1], [2], [3], [4], [5]]
    assert [{key: value for key, value in group.items() if key != "params"} for group in groups] == [
        {"lr": 1.0, "weight_decay": 4.0},
        {"lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
        {"lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
        {"lr": 1.0, "weight_decay": 3.0},
        {"lr": 2.0, "momentum": 2.0},
    ]
    assert given == copy


def test_reducing_merges_equal_settings():
    groups = reduce_param_groups(
        [
            {"params": [p1], "lr": 1.0, "weight_decay": 4.0},
            {"params": [p2, p6], "lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
            {"params": [p3], "lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
            {"params": [p4], "lr": 1.0, "weight_decay": 3.0},
            {"params": [p5], "lr": 2.0, "momentum": 2.0},
        ]
    )
    assert indices(groups) == [[1], [2, 6, 3], [4], [5]]
    assert groups[1]["momentum"] == 2.0


def test_reducing_knows_no_order_of_keys_and_takes_lists():
    # Detectron2: two groups, and a TypeError.
    groups = reduce_param_groups(
        [
            {"params": [p1], "lr": 1.0, "betas": [0.9, 0.99]},
            {"betas": [0.9, 0.99], "lr": 1.0, "params": [p2]},
            {"params": [p3], "lr": 1.0, "betas": [0.9, 0.98]},
        ]
    )
    assert indices(groups) == [[1, 2], [3]]
    assert groups[0]["betas"] == [0.9, 0.99]


def test_names_stay_beside_their_parameters():
    groups = reduce_param_groups(
        [
            {"params": [p1, p2], "param_names": ["one", "two"], "lr": 1.0},
            {"params": [p3], "lr": 1.0},
            {"params": [p4], "param_names": ["four"], "lr": 1.0},
        ]
    )
    assert [(ids, group.get("param_names")) for ids, group in zip(indices(groups), groups, strict=True)] == [
        ([1, 2, 4], ["one", "two", "four"]),
        ([3], None),
    ]
    with pytest.raises(ValueError, match="2 params and 1 param_names"):
        expand_param_groups([{"params": [p1, p2], "param_names": ["one"]}])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(1, 0.1), (1, 0.2), (1, 0.2)], 1),
        ([(1, 0.1), (3, 0.2), (3, 0.3)], 1),
        ([(1, 0.1), (1, 0.2)], 0),
    ],
)
def test_the_group_that_stands_for_all(sizes, expected):
    groups = [{"params": [nn.Parameter(torch.zeros(1)) for _ in range(size)], "lr": lr} for size, lr in sizes]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    assert summary_group_id(optimizer) == expected
    assert summary_lr(optimizer) == sizes[expected][1]


class Alias(nn.Module):
    """A convolution under two names, a norm, and a layer whose weight is frozen: five parameters to train."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(1, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.alias = self.c
        self.fc = nn.Linear(2, 2)
        self.fc.weight.requires_grad_(False)


def counts(groups: list[dict[str, Any]]) -> dict[tuple[Any, Any], int]:
    return {(group.get("lr"), group.get("weight_decay")): len(group["params"]) for group in groups}


def test_no_rules_give_one_group_of_what_trains():
    assert counts(param_groups(Alias())) == {(None, None): 5}


def test_absolute_decay_of_norms_and_biases():
    rules = {"bias_lr_mult": 2, "weight_decay_bias": 0, "weight_decay_norm": 0.5}
    copy = deepcopy(rules)
    # The norm's bias is a norm's first: 0.5, at the plain rate.
    assert counts(param_groups(Alias(), rules, 0.1, 1e-4)) == {(0.1, 1e-4): 1, (0.2, 0): 2, (0.1, 0.5): 2}
    # Detectron2's: a bias first.
    both = {**rules, "bias_rules_on_norms": True}
    assert counts(param_groups(Alias(), both, 0.1, 1e-4)) == {(0.1, 1e-4): 1, (0.2, 0): 3, (0.1, 0.5): 1}
    assert rules == copy


def test_overrides_by_the_last_part_of_a_name():
    rules = {"overrides": {"weight": {"lr": 0.01}}}
    assert counts(param_groups(Alias(), rules, 0.1)) == {(0.01, None): 2, (0.1, None): 3}
    assert rules == {"overrides": {"weight": {"lr": 0.01}}}


@FUNCTIONS.register_module()
def scale_of(name: str, prefix: str = "c.") -> float:
    return 0.5 if name.startswith(prefix) else 1.0


@pytest.mark.parametrize("function", [scale_of, "scale_of", {"type": "scale_of", "prefix": "c."}])
def test_a_function_scales_the_rate_by_name(function):
    wrapper = DefaultOptimWrapperConstructor({"optimizer": {"type": "SGD", "lr": 1.0}}, {"lr_factor_func": function})(
        Alias()
    )
    assert counts(wrapper.optimizer.param_groups) == {(0.5, 0.0): 2, (1.0, 0.0): 3}


def test_a_function_scales_what_the_rules_gave_and_overrides_end_it():
    rules = {
        "bias_lr_mult": 2.0,
        "lr_factor_func": lambda name: 0.5,
        "custom_keys": {"norm": {"lr_mult": 10.0, "momentum": 0.5}},
        "overrides": {"weight": {"lr": 7.0}},
    }
    groups = param_groups(Alias(), rules, 1.0)
    assert {(group["lr"], group.get("momentum")): len(group["params"]) for group in groups} == {
        (7.0, 0.5): 1,  # norm.weight
        (5.0, 0.5): 1,  # norm.bias
        (7.0, None): 1,  # c.weight
        (1.0, None): 2,  # c.bias, fc.bias
    }


@pytest.mark.parametrize(
    ("rules", "lr", "message"),
    [
        ({"bias_lr_mult": 2.0}, None, r"optimizer\.lr: must be set, .* 'bias_lr_mult'"),
        ({"lr_factor_func": scale_of}, None, r"optimizer\.lr: must be set, .* 'lr_factor_func'"),
        ({"norm_decay_mult": 0.0}, 0.1, r"optimizer\.weight_decay: must be set, .* 'norm_decay_mult'"),
        ({"bias_lr_mult": 2.0, "overrides": {"bias": {"lr": 1.0}}}, 0.1, r"bias_lr_mult and overrides\.bias\.lr"),
        ({"weight_decay_bias": 0.0, "overrides": {"bias": {"weight_decay": 1.0}}}, 0.1, "weight_decay_bias and over"),
        ({"weight_decay_norm": 0.0, "norm_decay_mult": 1.0}, 0.1, "norm_decay_mult and weight_decay_norm"),
        ({"weight_decay_bias": 0.0, "bias_decay_mult": 1.0}, 0.1, "bias_decay_mult and weight_decay_bias"),
    ],
)
def test_rules_without_a_base_or_at_odds_are_refused(rules, lr, message):
    with pytest.raises(ValueError, match=message):
        param_groups(Alias(), rules, lr)


def test_rules_of_the_wrong_type_are_refused():
    for rules, message in (
        ({"custom_keys": {"c": 2.0}}, "custom_keys: a dict from names to dicts"),
        ({"overrides": ["bias"]}, "overrides: a dict from names to dicts"),
        ({"lr_factor_func": 3}, "lr_factor_func: a function was expected, got 3"),
    ):
        with pytest.raises(TypeError, match=message):
            param_groups(Alias(), rules, 0.1)
    optimizer = {"optimizer": {"type": "SGD", "lr": 0.1}}
    with pytest.raises(KeyError, match=r"'scale_off' is not in the registry FUNCTIONS.*did you mean 'scale_of'"):
        DefaultOptimWrapperConstructor(optimizer, {"lr_factor_func": "scale_off"})
    with pytest.raises(KeyError, match=r"momentun: unknown key; did you mean 'momentum'"):
        DefaultOptimWrapperConstructor(optimizer, {"custom_keys": {"c.": {"momentun": 0.5}}})(Alias())


def test_misspelt_names_are_refused_and_names_of_other_models_warned_of(monkeypatch):
    model = nn.Sequential()
    model.backbone = nn.Sequential()
    model.backbone.layer1 = nn.Linear(1, 1)
    model.backbone.decoder = nn.Linear(1, 1).requires_grad_(False)
    for key in ("backbnoe", "backbone.layre1", "decodre"):
        with pytest.raises(KeyError, match=rf"custom_keys\.{key}: it decides for no parameter .*; did you mean"):
            param_groups(model, {"custom_keys": {key: {"lr_mult": 0.1}}}, 1.0)
    with pytest.raises(KeyError, match=r"overrides\.wieght: .* did you mean 'weight'"):
        param_groups(model, {"overrides": {"wieght": {"lr": 0.1}}}, 1.0)
    warned: list[str] = []
    monkeypatch.setattr(param_rules, "print_log", lambda text, **_: warned.append(text))
    others = ("absolute_pos_embed", "backbone.layer5", "encoder")
    rules = {"custom_keys": {key: {"lr_mult": 0.1} for key in others}}
    assert counts(param_groups(model, rules, 1.0)) == {(1.0, None): 2}
    assert [any(key in text for text in warned) for key in others] == [True] * 3
    # A key of frozen parameters has nothing to do, and is right.
    assert counts(param_groups(model, {"custom_keys": {"decoder": {"lr_mult": 0.1}}}, 1.0)) == {(1.0, None): 2}
    assert len(warned) == 3


def test_a_log_line_gives_the_rate_of_most_parameters(make_runner):
    # Of the six parameters of the toy model four are in its body.
    wrapper = {
        "optimizer": {"type": "SGD", "lr": 0.1},
        "paramwise_cfg": {"custom_keys": {"body": {"lr_mult": 0.5}}},
    }
    runner = make_runner(
        epochs=1, optim_wrapper=wrapper, param_scheduler=None, val_cfg=None, val_dataloader=None, val_evaluator=None
    )
    runner.train()
    lines = [json.loads(line) for line in Path(runner.work_dir, "metrics.jsonl").read_text().splitlines()]
    assert {line["lr"] for line in lines if "lr" in line} == {0.05}


def test_a_whole_retinanet_has_two_groups():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)
    optimizer = {"type": "SGD", "lr": 0.01, "weight_decay": 1e-4}
    for rules in ({"weight_decay_norm": 0.0}, {"norm_decay_mult": 0.0}):
        groups = DefaultOptimWrapperConstructor({"optimizer": optimizer}, rules)(model).optimizer.param_groups
        assert [len(group["params"]) for group in groups] == [81, 122]
        assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    assert optimizer == {"type": "SGD", "lr": 0.01, "weight_decay": 1e-4}
    table = describe_param_groups(groups).splitlines()
    assert [line.split() for line in table] == [
        ["group", "tensors", "values", "lr", "weight_decay"],
        ["0", "81", f"{sum(p.numel() for p in groups[0]['params']):,}", "0.01", "0.0001"],
        ["1", "122", f"{sum(p.numel() for p in groups[1]['params']):,}", "0.01", "0"],
    ]


def test_kernels_are_chosen_only_on_cuda_and_only_where_the_config_does_not():
    cpu = DefaultOptimWrapperConstructor({"optimizer": {"type": "AdamW", "lr": 0.1}})(Alias()).optimizer
    assert not cpu.param_groups[0]["fused"]

    def choice(kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> dict[str, bool]:
        class Parameter:
            is_cuda = True
            device = "cuda:0"

            def is_floating_point(self) -> bool:
                return dtype.is_floating_point

        class Model:
            def parameters(self) -> list[Any]:
                return [Parameter()]

        constructor = DefaultOptimWrapperConstructor({"optimizer": {"type": kind, "lr": 0.1, **options}})
        return constructor._kernels(Model())

    assert choice("AdamW") == choice("SGD") == {"fused": True}
    assert choice("AdamW", foreach=True) == choice("AdamW", fused=False) == choice("Adagrad") == {}
    assert choice("SGD", dtype=torch.int64) == {}


NORM = re.compile(r"(^|\.)(bn\d?|(\w+_)?norms?(\.\d)?|gn\d?|ln|downsample\.1)$")


def stand_in(names: list[str]) -> nn.Module:
    """Modules under the names of a model that detkit does not have yet, of the kinds that the names say."""
    model = nn.Module()
    for name in names:
        *path, leaf = name.split(".")
        level: Any = model
        for index, part in enumerate(path):
            if part not in level._modules:
                is_norm = index == len(path) - 1 and NORM.search(".".join(path))
                level.add_module(part, nn.GroupNorm(1, 1) if is_norm else nn.Module())
            level = level._modules[part]
        if leaf not in level._parameters:
            shape = (1,) if leaf.endswith("bias") else () if leaf == "scale" else (1, 1)
            level.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return model


FILES = ["CenterNet", "DETR", "DeformableDETR", "FCOS", "FasterRCNN", "RTMDet", "RetinaNet", "TOOD", "YOLOX"]
CASES = [
    pytest.param(*case.values, id=f"{name}-{case.id}")
    for name in FILES
    for case in cases(f"optim/param_groups_{name}")
    if case.id != "error_unknown"  # MMDetection ignores a rule that does not exist; here it is an error
]


@pytest.mark.parametrize("case", CASES)
def test_reference(case):
    cfg = deepcopy(case["config"])
    rules = cfg.pop("paramwise_cfg", None)
    model_cfg = case["inputs"]["model"]
    if find(model_cfg["type"], MODELS) is not None:
        model = MODELS.build(deepcopy(model_cfg))
    else:
        model = stand_in(case["outputs"]["order"])
        if model_cfg["backbone"].get("frozen_stages", -1) > 0:
            model.backbone.layer1 = nn.Linear(1, 1).requires_grad_(False)
    if "error" in case:
        with pytest.raises((ValueError, TypeError)):
            DefaultOptimWrapperConstructor(cfg, rules)(model)
        return
    groups = DefaultOptimWrapperConstructor(cfg, rules)(model).optimizer.param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    for setting in ("lr", "weight_decay"):
        found = {names[parameter]: group[setting] for group in groups for parameter in group["params"]}
        assert found == pytest.approx(case["outputs"][setting], rel=1e-6, abs=1e-9)
    assert len(groups) == len({(group["lr"], group["weight_decay"]) for group in groups})
