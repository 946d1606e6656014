"""Learning rates that fall towards the stem, for the names of several trunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detkit.engine import LearningRateDecayOptimizerConstructor
from detkit.engine.optim.layer_decay import trunk_layers

CONVNEXT = {
    **{f"backbone.downsample_layers.{stage}.0.weight": layer for stage, layer in enumerate((0, 2, 3, 6))},
    **{f"backbone.stages.0.{block}.pointwise_conv1.weight": 1 for block in range(3)},
    **{f"backbone.stages.1.{block}.pointwise_conv1.weight": 2 for block in range(3)},
    **{f"backbone.stages.2.{block}.gamma": 3 + block // 3 for block in range(9)},
    **{f"backbone.stages.3.{block}.norm.weight": 6 for block in range(3)},
    "backbone.norm3.weight": None,
    "neck.convs.0.weight": None,
}
RESNET18 = {
    "backbone.conv1.weight": 0,
    "backbone.bn1.weight": 0,
    "backbone.layer1.0.conv1.weight": 1,
    "backbone.layer1.1.bn2.bias": 2,
    "backbone.layer2.0.downsample.0.weight": 3,
    "backbone.layer2.1.conv1.weight": 4,
    "backbone.layer3.1.conv2.weight": 6,
    "backbone.layer4.1.conv2.weight": 8,
    "bbox_head.layer1.0.weight": None,
}
SWIN = {
    "backbone.absolute_pos_embed": 0,
    "backbone.patch_embed.projection.weight": 0,
    "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table": 1,
    "backbone.stages.0.blocks.1.ffn.layers.0.0.weight": 2,
    "backbone.stages.0.downsample.reduction.weight": 2,
    "backbone.stages.1.blocks.1.norm1.weight": 4,
    "backbone.stages.1.downsample.norm.weight": 4,
    "backbone.stages.2.blocks.5.norm1.weight": 10,
    "backbone.norm2.weight": None,
}
TORCHVISION = {
    "backbone.body.features.0.0.weight": 0,
    "backbone.body.features.1.0.block.0.weight": 1,
    "backbone.body.features.1.2.block.0.weight": 3,
    "backbone.body.features.2.0.weight": 4,  # between the stages
    "backbone.body.features.3.0.block.0.weight": 4,
    "backbone.fpn.layer_blocks.0.0.weight": None,
}
VIT = {
    "backbone.cls_token": 0,
    "backbone.pos_embed": 0,
    "backbone.layers.0.ffn.layers.0.0.weight": 1,
    "backbone.layers.11.attn.qkv.weight": 12,
    "backbone.ln1.weight": None,
}


@pytest.mark.parametrize(
    ("expected", "count"),
    [(CONVNEXT, 6), (RESNET18, 8), (SWIN, 10), (TORCHVISION, 4), (VIT, 12)],
    ids=["convnext", "resnet", "swin", "torchvision", "vit"],
)
def test_layers_are_read_off_the_names(expected, count):
    layers, found = trunk_layers(expected)
    assert layers == expected
    assert found == count


def test_stages_are_read_off_the_names():
    layers, count = trunk_layers(CONVNEXT, by_stage=True)
    assert count == 4
    assert layers["backbone.stages.2.8.gamma"] == 3
    assert layers["backbone.stages.3.0.norm.weight"] == 4
    assert layers["backbone.downsample_layers.3.0.weight"] == 0
    layers, count = trunk_layers(SWIN, by_stage=True)
    assert count == 3
    assert layers["backbone.stages.1.downsample.norm.weight"] == 2


class Named(nn.Module):
    """Parameters under given names; flat ones where a name says norm, bias or gamma."""

    def __init__(self, names: Any) -> None:
        super().__init__()
        for name in names:
            *path, leaf = name.split(".")
            level: nn.Module = self
            for part in path:
                if part not in level._modules:
                    level.add_module(part, nn.Module())
                level = level._modules[part]
            flat = "norm" in name or leaf in ("bias", "gamma")
            level.register_parameter(leaf, nn.Parameter(torch.zeros((2,) if flat else (1, 2, 2))))


def settings(names: Any, optimizer: dict[str, Any] | None = None, **rules: Any) -> dict[str, tuple[float, float]]:
    model = Named(names)
    cfg = {"optimizer": optimizer or {"type": "AdamW", "lr": 1.0, "weight_decay": 0.05}}
    wrapper = LearningRateDecayOptimizerConstructor(cfg, rules)(model)
    groups = wrapper.optimizer.param_groups
    assert len(groups) == len({(group["lr"], group["weight_decay"]) for group in groups})
    by_parameter = {parameter: name for name, parameter in model.named_parameters()}
    return {
        by_parameter[parameter]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("rules", [{"num_layers": 6, "decay_type": "layer_wise"}, {}])
def test_convnext_has_mmdetections_rates_and_decay(rules):
    # MMDetection: decay_rate ** (num_layers + 1 - layer), and no weight decay for flat parameters
    found = settings(CONVNEXT, decay_rate=0.7, **rules)
    for name, layer in CONVNEXT.items():
        rate = 1.0 if layer is None else 0.7 ** (7 - layer)
        assert found[name] == pytest.approx((rate, 0.0 if "norm" in name or "gamma" in name else 0.05)), name


def test_stages_with_mmdetections_number_of_layers():
    found = settings(CONVNEXT, decay_rate=0.5, decay_type="stage_wise", num_layers=6)
    assert found["backbone.stages.0.0.pointwise_conv1.weight"][0] == 0.5**6
    assert found["backbone.downsample_layers.2.0.weight"][0] == 0.5**7
    assert found["neck.convs.0.weight"][0] == 1.0


def test_positions_do_not_decay_unless_a_rule_says_so():
    found = settings(SWIN, decay_rate=0.5)
    assert found["backbone.absolute_pos_embed"] == (0.5**11, 0.0)
    assert found["backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table"] == (0.5**10, 0.0)
    assert found["backbone.patch_embed.projection.weight"] == (0.5**11, 0.05)
    found = settings(SWIN, decay_rate=0.5, flat_decay_mult=1.0)
    assert found["backbone.absolute_pos_embed"][1] == found["backbone.norm2.weight"][1] == 0.05
    without = settings(SWIN, {"type": "SGD", "lr": 1.0}, decay_rate=0.5)
    assert {decay for _, decay in without.values()} == {0.0}


def test_other_rules_go_along():
    rules = {"custom_keys": {"neck": {"lr_mult": 10.0}}, "lr_factor_func": lambda name: 2.0}
    found = settings(CONVNEXT, decay_rate=0.5, **rules)
    assert found["neck.convs.0.weight"][0] == 20.0
    assert found["backbone.stages.3.0.norm.weight"][0] == 2.0 * 0.5


def test_a_config_that_cannot_be_is_refused():
    cfg = {"optimizer": {"type": "SGD", "lr": 0.1}}
    with pytest.raises(KeyError, match=r"paramwise_cfg\.decay_rate is missing"):
        LearningRateDecayOptimizerConstructor(cfg, {"num_layers": 6})
    with pytest.raises(KeyError, match=r"decay_rat: unknown key; did you mean 'decay_rate'"):
        LearningRateDecayOptimizerConstructor(cfg, {"decay_rat": 0.5})
    with pytest.raises(ValueError, match=r"decay_rate: a value in \(0, 1\], got 1\.5"):
        LearningRateDecayOptimizerConstructor(cfg, {"decay_rate": 1.5})
    with pytest.raises(ValueError, match="decay_type: 'layer_wise' or 'stage_wise', got 'block_wise'"):
        LearningRateDecayOptimizerConstructor(cfg, {"decay_rate": 0.5, "decay_type": "block_wise"})
    # 27 blocks in the third stage: MMDetection gives the stem's neighbours more than the head
    names = [*CONVNEXT, *(f"backbone.stages.2.{block}.gamma" for block in range(9, 27))]
    with pytest.raises(ValueError, match="num_layers: the trunk has 12 layers, got 6"):
        settings(names, decay_rate=0.5, num_layers=6)
    with pytest.raises(ValueError, match=r"it finds none in backbone\.stage\.weight"):
        settings(["backbone.stage.weight"], decay_rate=0.5)
