"""Weights of the authors of Swin and PVT, https://github.com/microsoft/Swin-Transformer and https://github.com/whai362/PVT,
under the names they have here and in MMDetection."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_position_tables", "from_pvt", "from_swin", "of_backbone"]

_SWIN = (
    (r"^layers\.", "stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
)
_PVT = (
    (r"\.attn\.proj\.", ".attn.attn.out_proj."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0."),
    (r"\.mlp\.dwconv\.dwconv\.", ".ffn.layers.1."),
    (r"\.proj\.", ".projection."),
)


def of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the backbone alone, of those of a detector; those of a classifier as they are."""
    part = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    return part or dict(state)


def from_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Swin's weights, renamed; those that have the names already are left as they are.

    Where four tokens are merged, its authors have them column by column, one after another; here they are row by row,
    channel by channel.
    """
    if not any(name.startswith("layers.") for name in state):
        return dict(state)
    found = {}
    for name, value in state.items():
        # The classifier, its norm, and masks for one size of image.
        if name.startswith(("head.", "norm.")) or name.endswith(".attn_mask"):
            continue
        if ".downsample." in name:
            four = value.unflatten(-1, (4, -1))
            value = four[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
        found[_renamed(name, _SWIN)] = value
    return found


def from_pvt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PVT's and PVTv2's weights, renamed; those that have the names already are left as they are.

    Queries, keys and values share a tensor here, and the layers after the attention are convolutions.
    """
    if not any(name.startswith("block1.") for name in state):
        return dict(state)
    with_positions = any(name.startswith("pos_embed") for name in state)
    second = "4" if any(".dwconv." in name for name in state) else "3"
    found = {}
    for name, value in state.items():
        if name.startswith(("head.", "norm.", "cls_token")) or ".attn.kv." in name:
            continue
        if ".attn.q." in name:
            value = torch.cat([value, state[name.replace(".q.", ".kv.")]])
        if re.search(r"\.mlp\.fc\d\.weight$", name):
            value = value[:, :, None, None]
        if name == "pos_embed4" and value.shape[1] == 50:
            value = value[:, 1:]  # the first is the class token's
        found[_pvt_name(name, with_positions, second)] = value
    return found


def _pvt_name(name: str, with_positions: bool, second: str) -> str:
    match = re.match(r"(pos_embed|patch_embed|block|norm)(\d)(?:\.(.*))?$", name)
    if match is None:
        return name
    kind, stage, rest = match[1], f"layers.{int(match[2]) - 1}", match[3] or ""
    if kind == "pos_embed":
        return f"{stage}.1.0.pos_embed"
    if kind == "block":
        index, _, rest = rest.partition(".")
        # In a list with the position embedding, that is the first.
        rest = re.sub(r"^attn\.q\.(weight|bias)$", r"attn.attn.in_proj_\1", rest)
        rest = re.sub(r"^mlp\.fc2\.", f"ffn.layers.{second}.", rest)
        return f"{stage}.1.{int(index) + with_positions}" + _renamed(f".{rest}", _PVT)
    return f"{stage}.{0 if kind == 'patch_embed' else 2}" + _renamed(f".{rest}", _PVT)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def fit_position_tables(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Swin's tables of relative positions, (2 w - 1)^2 rows, interpolated where windows have another width w.

    Args:
        state: Weights.
        own: The model's state dict.
    """
    found = dict(state)
    for name, value in state.items():
        wanted = own.get(name)
        if wanted is None or wanted.shape == value.shape:
            continue
        if name.endswith("relative_position_index"):
            found[name] = wanted
        elif name.endswith("relative_position_bias_table") and wanted.shape[1] == value.shape[1]:
            old, new = (round(len(table) ** 0.5) for table in (value, wanted))
            grid = value.T.reshape(1, -1, old, old).float()
            found[name] = F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2)[0].T.contiguous()
    return found
