"""Parameter groups, clipping and mixed precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper as MMEngineOptimWrapper
from mmengine.optim.optimizer.default_constructor import DefaultOptimWrapperConstructor as MMEngineConstructor
from torch import nn

from detkit.engine import AmpOptimWrapper, DefaultOptimWrapperConstructor, OptimWrapper, load_checkpoint_file


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4))
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(4, 2)
        self.head.bias.requires_grad_(False)


def config(**optimizer):
    return {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.01, **optimizer}}


def settings(wrapper, model: nn.Module) -> dict[str, tuple[float, float]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }


RULES = [
    {"norm_decay_mult": 0.0},
    {"bias_lr_mult": 2.0, "bias_decay_mult": 0.0},
    {"norm_decay_mult": 0.5, "dwconv_decay_mult": 0.1, "flat_decay_mult": 0.0, "bias_lr_mult": 3.0},
    {"custom_keys": {"backbone": {"lr_mult": 0.1}, "backbone.2": {"lr_mult": 0.5, "decay_mult": 0.0}}},
    {"norm_decay_mult": 0.0, "custom_keys": {"head": {"decay_mult": 3.0}, "scale": {"lr_mult": 2.0}}},
]


@pytest.mark.parametrize("rules", RULES)
def test_groups_have_mmengines_settings_in_fewer_groups(rules):
    model = Net()
    own = DefaultOptimWrapperConstructor(config(), rules)(model)
    theirs = MMEngineConstructor(config(), rules)(model)
    assert settings(own, model) == settings(theirs, model)
    groups = [(group["lr"], group["weight_decay"]) for group in own.optimizer.param_groups]
    assert len(groups) == len(set(groups))
    assert len(groups) < len(theirs.optimizer.param_groups)


def test_without_rules_there_is_one_group_of_everything():
    wrapper = DefaultOptimWrapperConstructor(config())(Net())
    (group,) = wrapper.optimizer.param_groups
    assert len(group["params"]) == len(list(Net().parameters()))
    assert type(wrapper) is OptimWrapper


def test_rules_scale_the_optimizers_own_defaults():
    # AdamW decays by 0.01 where a config says nothing
    wrapper = DefaultOptimWrapperConstructor({"optimizer": {"type": "AdamW"}}, {"norm_decay_mult": 0.5})(Net())
    assert {group["weight_decay"] for group in wrapper.optimizer.param_groups} == {0.01, 0.005}


def test_rms_norm_is_a_norm():
    wrapper = DefaultOptimWrapperConstructor(config(), {"norm_decay_mult": 0.0})(nn.RMSNorm(3))
    assert wrapper.optimizer.param_groups[0]["weight_decay"] == 0.0


def test_a_shared_parameter_is_taken_once():
    model = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model[1].weight = model[0].weight
    wrapper = DefaultOptimWrapperConstructor(config(), {"bias_lr_mult": 2.0})(model)
    assert sum(len(group["params"]) for group in wrapper.optimizer.param_groups) == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"nrom_decay_mult": 0.0}, "paramwise_cfg.nrom_decay_mult: unknown key; did you mean 'norm_decay_mult'"),
        ({"custom_keys": {"backbnoe": {"lr_mult": 0.1}}}, r"custom_keys\.backbnoe: .* did you mean 'backbone'"),
    ],
)
def test_rules_that_nobody_reads_are_refused(rules, message):
    with pytest.raises(KeyError, match=message):
        DefaultOptimWrapperConstructor(config(), rules)(Net())


def test_a_rule_for_a_setting_the_optimizer_lacks_is_refused():
    with pytest.raises(ValueError, match=r"optim_wrapper\.optimizer\.weight_decay: must be set"):
        DefaultOptimWrapperConstructor({"optimizer": {"type": "Rprop", "lr": 0.1}}, {"norm_decay_mult": 0.0})(Net())
    with pytest.raises(KeyError, match="the key 'optimizer' is missing"):
        DefaultOptimWrapperConstructor({"type": "OptimWrapper"})


def sgd(*values: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.tensor([value])) for value in values], lr=1.0)


def test_clipping_by_norm_and_value():
    # gradients 3 and 4 have norm 5: clipped to 1 they are 0.6 and 0.8
    wrapper = OptimWrapper(sgd(3.0, 4.0), clip_grad={"max_norm": 1.0})
    one, two = wrapper.optimizer.param_groups[0]["params"]
    wrapper.update_params((one.square() + two.square()).sum() / 2)
    torch.testing.assert_close(torch.cat([one, two]).detach(), torch.tensor([3 - 0.6, 4 - 0.8]))
    assert wrapper.grad_norm.item() == pytest.approx(5.0)
    wrapper = OptimWrapper(sgd(3.0), clip_grad={"type": "value", "clip_value": 1.0})
    (one,) = wrapper.optimizer.param_groups[0]["params"]
    wrapper.update_params(one.square().sum() / 2)
    assert one.item() == 2.0
    assert wrapper.grad_norm is None


def test_clip_grad_of_the_config_is_checked_and_left_alone():
    cfg = {"type": "norm", "max_norm": 1.0}
    OptimWrapper(sgd(1.0), clip_grad=cfg)
    assert cfg == {"type": "norm", "max_norm": 1.0}
    with pytest.raises(KeyError, match=r"clip_grad\.max_nrom: unknown key; did you mean 'max_norm'"):
        OptimWrapper(sgd(1.0), clip_grad={"max_nrom": 1.0})
    with pytest.raises(ValueError, match=r"clip_grad\.type: 'norm' or 'value' was expected, got 'nrom'"):
        OptimWrapper(sgd(1.0), clip_grad={"type": "nrom", "max_norm": 1})


def test_amp_trains_in_bfloat16_on_a_cpu(make_runner):
    wrapper = {"type": "AmpOptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}}
    runner = make_runner(epochs=1, optim_wrapper=wrapper)
    seen = []
    runner.model.bbox_head.fc.register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))
    runner.train()
    assert seen[:3] == [torch.bfloat16] * 3
    assert seen[3] == torch.float32  # validation is not autocast
    state = load_checkpoint_file(Path(runner.work_dir, "epoch_1.pth"))
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32, torch.int64}
    assert "loss_scaler" not in state["optimizer"]


def test_amp_float16_scales_skips_an_overflow_and_saves_its_scale():
    wrapper = AmpOptimWrapper(sgd(2.0), loss_scale={"init_scale": 8.0}, dtype="float16")
    (weight,) = wrapper.optimizer.param_groups[0]["params"]
    with wrapper.optim_context(nn.Identity()):
        loss = weight.square().sum() / 2
    wrapper.update_params(loss)
    assert weight.item() == 0.0  # 2 - 1.0 * 2, unscaled
    wrapper.update_params((weight * float("inf")).sum())
    assert weight.item() == 0.0
    assert wrapper.loss_scaler.get_scale() == 4.0
    other = AmpOptimWrapper(sgd(2.0), dtype=torch.float16)
    other.load_state_dict(wrapper.state_dict())
    assert other.loss_scaler.get_scale() == 4.0


def test_amp_clips_the_unscaled_gradient():
    wrapper = AmpOptimWrapper(sgd(4.0), loss_scale=8.0, dtype="float16", clip_grad={"max_norm": 1.0})
    (weight,) = wrapper.optimizer.param_groups[0]["params"]
    wrapper.update_params(weight.square().sum() / 2)
    assert weight.item() == pytest.approx(3.0, abs=1e-5)
    assert wrapper.grad_norm.item() == pytest.approx(4.0)
    assert wrapper.loss_scaler.get_scale() == 8.0


def test_amp_arguments_are_checked():
    with pytest.raises(ValueError, match="dtype is 'float16', 'bfloat16' or None, got 'float8'"):
        AmpOptimWrapper(sgd(1.0), dtype="float8")
    with pytest.raises(ValueError, match="loss_scale is 'dynamic', a number or a dict, got 'static'"):
        AmpOptimWrapper(sgd(1.0), loss_scale="static")
    assert AmpOptimWrapper(sgd(1.0)).dtype is torch.bfloat16
    assert isinstance(AmpOptimWrapper(sgd(1.0)), MMEngineOptimWrapper)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_accumulation_is_one_large_batch(count):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=count)
    for batch in torch.arange(8.0).reshape(8, 1).chunk(count):
        wrapper.update_params(model(batch).mean())
    # the gradient of the mean output is the mean input, 3.5
    assert model.weight.item() == pytest.approx(-0.35)
