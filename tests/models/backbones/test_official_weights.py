"""Weights under the names of Swin's and PVT's authors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detkit.checkpoints import save_checkpoint_file
from detkit.models import PyramidVisionTransformer, PyramidVisionTransformerV2, SwinTransformer
from detkit.models.backbones.official_weights import fit_position_tables, from_pvt, from_swin
from detkit.models.backbones.patches import PatchMerging

SWIN = {"embed_dims": 8, "depths": (1, 1), "num_heads": (1, 2), "strides": (4, 2), "out_indices": (0, 1)}
PVT = {"embed_dims": 4, "num_layers": (1, 1, 1, 2)}


def official_swin(network, window_size=7):
    """The authors' names and shapes of the weights of ``network``."""
    rows = (2 * window_size - 1) ** 2
    block = {
        **{"norm1.weight": (8,), "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,)},
        **{"attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,), "attn.proj.weight": (8, 8), "attn.proj.bias": (8,)},
        **{"mlp.fc1.weight": (32, 8), "mlp.fc1.bias": (32,), "mlp.fc2.weight": (8, 32), "mlp.fc2.bias": (8,)},
        "attn.relative_position_bias_table": (rows, 1),
    }
    shapes = {f"layers.0.blocks.0.{name}": shape for name, shape in block.items()}
    for name, shape in block.items():
        twice = [size * 2 for size in shape] if not name.endswith("table") else [rows, 2]
        shapes[f"layers.1.blocks.0.{name}"] = twice
    shapes |= {
        **{"patch_embed.proj.weight": (8, 3, 4, 4), "patch_embed.proj.bias": (8,)},
        **{"patch_embed.norm.weight": (8,), "patch_embed.norm.bias": (8,)},
        **{"layers.0.downsample.reduction.weight": (16, 32), "layers.0.downsample.norm.weight": (32,)},
        **{"layers.0.downsample.norm.bias": (32,), "norm.weight": (16,), "norm.bias": (16,)},
        **{"head.weight": (10, 16), "head.bias": (10,), "layers.0.blocks.1.attn_mask": (4, 49, 49)},
    }
    torch.manual_seed(0)
    state = {name: torch.randn(*shape) for name, shape in shapes.items()}
    own = network.state_dict()
    for stage in (0, 1):
        index = f"stages.{stage}.blocks.0.attn.w_msa.relative_position_index"
        state[f"layers.{stage}.blocks.0.attn.relative_position_index"] = own[index]
    return state


def test_swin_loads_them(tmp_path):
    state = official_swin(SwinTransformer(**SWIN))
    save_checkpoint_file({"model": state}, tmp_path / "swin.pth")
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "swin.pth")}
    network = SwinTransformer(**SWIN, convert_weights=True, init_cfg=init)
    network.init_weights()
    own = network.state_dict()
    pairs = {
        "patch_embed.projection.bias": "patch_embed.proj.bias",
        "stages.0.blocks.0.attn.w_msa.qkv.weight": "layers.0.blocks.0.attn.qkv.weight",
        "stages.1.blocks.0.attn.w_msa.relative_position_bias_table": (
            "layers.1.blocks.0.attn.relative_position_bias_table"
        ),
        "stages.1.blocks.0.ffn.layers.0.0.weight": "layers.1.blocks.0.mlp.fc1.weight",
        "stages.1.blocks.0.ffn.layers.1.bias": "layers.1.blocks.0.mlp.fc2.bias",
    }
    for name, given in pairs.items():
        assert torch.equal(own[name], state[given]), name
    # Norms of the outputs are the detector's own.
    assert own.keys() - from_swin(state).keys() == {f"norm{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    assert from_swin(state).keys() <= own.keys()


def test_merged_tokens_are_in_another_order():
    """The authors join (0, 0), (1, 0), (0, 1), (1, 1), row and column, each with all its channels."""
    torch.manual_seed(0)
    norm, reduction, x = nn.LayerNorm(12), nn.Linear(12, 5, bias=False), torch.randn(2, 4, 6, 3)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    four = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = reduction(norm(torch.cat(four, dim=-1)))
    names = {"norm.weight": norm.weight, "norm.bias": norm.bias, "reduction.weight": reduction.weight}
    state = from_swin({f"layers.0.downsample.{name}": value for name, value in names.items()})
    merge = PatchMerging(3, 5, {"type": "LN"})
    merge.load_state_dict({name.removeprefix("stages.0.downsample."): value for name, value in state.items()})
    torch.testing.assert_close(merge(x), expected)


def test_names_of_mmdetection_stay(tmp_path):
    given = SwinTransformer(**SWIN)
    for prefix in ("", "backbone.", "module.backbone."):
        state = {f"{prefix}{name}": value for name, value in given.state_dict().items()}
        save_checkpoint_file({"state_dict": state}, tmp_path / "x.pth")
        for convert in (True, False):
            init = {"type": "Pretrained", "checkpoint": str(tmp_path / "x.pth")}
            network = SwinTransformer(**SWIN, convert_weights=convert, init_cfg=init)
            network.init_weights()
            for name, value in network.state_dict().items():
                assert torch.equal(value, given.state_dict()[name]), name


def test_tables_of_positions_fit_other_windows():
    large, small = (SwinTransformer(**SWIN, window_size=size).state_dict() for size in (12, 7))
    table = "stages.1.blocks.0.attn.w_msa.relative_position_bias_table"
    # A ramp over rows of the table stays one: differences of -11 to 11 become differences of -6 to 6.
    large[table] = torch.arange(-11.0, 12).repeat_interleave(23)[:, None].expand(-1, 2).contiguous()
    found = fit_position_tables(large, small)
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in small.items()}
    rows = found[table].view(13, 13, 2)
    torch.testing.assert_close(rows[:, 4, 1], torch.arange(-6.0, 7) * 23 / 13, rtol=0, atol=0.2)
    index = "stages.0.blocks.0.attn.w_msa.relative_position_index"
    assert torch.equal(found[index], small[index])
    # Other heads do not fit; loading says so.
    other = {table: torch.zeros(23**2, 5)}
    assert fit_position_tables(other, small) == other


def official_pvt(network, second):
    """The weights of ``network`` under the authors' names: an inverse written the other way round."""
    torch.manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        value = torch.randn_like(value)
        _, stage, part, *rest = name.split(".")
        number, tail = int(stage) + 1, ".".join(rest[1:])
        if part == "0":
            state[f"patch_embed{number}.{'.'.join(rest).replace('projection', 'proj')}"] = value
        elif part == "2":
            state[f"norm{number}.{rest[0]}"] = value
        elif tail == "pos_embed":
            state[f"pos_embed{number}"] = value
        else:
            block = f"block{number}.{int(rest[0]) - (second == 3)}"
            if "in_proj" in tail:
                kind = tail.rpartition("_")[2]
                state[f"{block}.attn.q.{kind}"], state[f"{block}.attn.kv.{kind}"] = (
                    value[: len(value) // 3],
                    value[len(value) // 3 :],
                )
                continue
            tail = tail.replace("attn.attn.out_proj", "attn.proj").replace("ffn.layers.0", "mlp.fc1")
            tail = tail.replace(f"ffn.layers.{second}", "mlp.fc2").replace("ffn.layers.1", "mlp.dwconv.dwconv")
            state[f"{block}.{tail}"] = value.flatten(1) if tail.endswith(("fc1.weight", "fc2.weight")) else value
    return state | {"head.weight": torch.zeros(2), "norm.weight": torch.zeros(2), "cls_token": torch.zeros(2)}


@pytest.mark.parametrize(("kind", "second"), [(PyramidVisionTransformer, 3), (PyramidVisionTransformerV2, 4)])
def test_pvt_loads_them(kind, second, tmp_path):
    state = official_pvt(kind(**PVT), second)
    if second == 3:
        state["pos_embed4"] = torch.cat([torch.zeros(1, 1, 32), state["pos_embed4"]], dim=1)  # with the class's
    found = from_pvt(state)
    save_checkpoint_file({"state_dict": state}, tmp_path / "pvt.pth")
    # MMDetection's configs leave the type out.
    network = kind(**PVT, init_cfg={"checkpoint": str(tmp_path / "pvt.pth")})
    network.init_weights()
    own = network.state_dict()
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in own.items()}
    block = f"layers.3.1.{1 + (second == 3)}"
    expected = {
        "layers.1.0.projection.weight": state["patch_embed2.proj.weight"],
        f"{block}.attn.attn.in_proj_weight": torch.cat(
            [state["block4.1.attn.q.weight"], state["block4.1.attn.kv.weight"]]
        ),
        f"{block}.attn.attn.out_proj.bias": state["block4.1.attn.proj.bias"],
        f"{block}.ffn.layers.0.weight": state["block4.1.mlp.fc1.weight"][..., None, None],
        f"{block}.ffn.layers.{second}.bias": state["block4.1.mlp.fc2.bias"],
    }
    if second == 3:
        expected["layers.3.1.0.pos_embed"] = state["pos_embed4"][:, 1:]
    else:
        expected["layers.3.2.weight"] = state["norm4.weight"]
        expected["layers.0.1.0.ffn.layers.1.weight"] = state["block1.0.mlp.dwconv.dwconv.weight"]
    for name, value in expected.items():
        assert torch.equal(own[name], value), name
    assert from_pvt(own).keys() == own.keys()
    plain = kind(**PVT, convert_weights=False, init_cfg={"checkpoint": str(tmp_path / "pvt.pth")})
    with pytest.raises(ValueError, match="no tensor of it fits"):
        plain.init_weights()
