"""SwinTransformer and both PVT against MMDetection 3.3.0, and what does not show in its numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from no_sync import NoSync
from reference import assert_same, cases, load_weights, rule_tensor
from torch import nn

from detkit.models.backbones.patches import PatchMerging, drop_path_rates
from detkit.registry import MODELS

NAMES = ("SwinTransformer", "PyramidVisionTransformer", "PyramidVisionTransformerV2")
SMALL = {
    "SwinTransformer": {"embed_dims": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "strides": (4, 2, 2)}
    | {"out_indices": (0, 1, 2), "window_size": 4, "use_abs_pos_embed": True},
    "PyramidVisionTransformer": {"embed_dims": 4, "num_layers": (1, 2, 1, 1)},
    "PyramidVisionTransformerV2": {"embed_dims": 4, "num_layers": (1, 2, 1, 1)},
}


def small(name, **options):
    torch.manual_seed(0)
    network = MODELS.build({"type": name, **SMALL[name], **options})
    network.init_weights()
    return network


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def out_of(network, x):
    return torch.cat([out.flatten() for out in network(x)])


@pytest.mark.parametrize("case", [case for name in NAMES for case in cases(f"backbones/{name}")])
def test_as_in_mmdetection(case):
    network = MODELS.build(case["config"])
    for name, value in case["state_dict"].items():
        assert torch.equal(network.state_dict()[name], value.long()), name  # which place differs how from which
    load_weights(network, case)
    network.train(case["training"])
    x = rule_tensor(case["inputs"]["x"], -2, 2, 999).requires_grad_()
    outs, expected = network(x), case["outputs"]
    assert [list(out.shape) for out in outs] == expected["shapes"]
    for out, wanted in zip(outs, expected["out"], strict=True):
        assert_same(out.detach().flatten()[:: max(1, out.numel() // 257)], wanted, 1e-4, 1e-5)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    total = sum(out.square().sum() for out in outs)
    grads = torch.autograd.grad(total, [*parameters.values(), x], allow_unused=True)
    assert [name for name, grad in zip(parameters, grads, strict=False) if grad is None] == expected["no_grad"]
    norms = {name: grad.norm().item() for name, grad in zip(parameters, grads, strict=False) if grad is not None}
    # A bias before a softmax has no gradient but rounding.
    largest = max(expected["grad_norms"].values())
    assert norms == pytest.approx(expected["grad_norms"], rel=1e-3, abs=1e-6 * largest)
    assert grads[-1].norm().item() == pytest.approx(expected["input_grad_norm"], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device_and_every_parameter_learns(name):
    network, x = small(name).train(), images(61, 90)
    with NoSync():
        out_of(network, x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    shapes = [out.shape for out in network(x)]
    assert [out.shape for out in network.to("meta")(x.to("meta"))] == shapes


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_network_is_one_graph(name):
    one_stage = {"num_heads": (2,), "strides": (4,), "out_indices": (0,), "embed_dims": 8}
    if name == "SwinTransformer":
        one_stage |= {"depths": (2,)}
    else:
        one_stage |= {"num_layers": (1,), "num_stages": 1, "sr_ratios": (4,)}
        one_stage |= {"patch_sizes": (4,)} if name == "PyramidVisionTransformer" else {}
    network, x = small(name, **one_stage).eval(), images(61, 90)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(out_of(compiled, x), out_of(network, x))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_in_a_batch_is_as_alone(name):
    network, x = small(name).eval(), images(61, 90)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([network(one[None])[-1] for one in x]), network(x)[-1])


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_dropped_by_sample_in_training_only(name):
    network, x = small(name, drop_path_rate=0.9), images(64, 64)
    x[1] = x[0]
    network.eval()
    first, second = network(x)[-1]
    torch.testing.assert_close(first, second)
    network.train()
    torch.manual_seed(3)
    first, second = network(x)[-1]
    assert not torch.allclose(first, second)


def test_rates_grow_evenly():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]


def test_recomputing_activations_changes_nothing():
    grads, calls = [], []
    for with_cp in (False, True):
        network = small("SwinTransformer", with_cp=with_cp, drop_path_rate=0.5, drop_rate=0.1).train()
        network.stages[1].blocks[0].attn.register_forward_hook(lambda *_, cp=with_cp: calls.append(cp))
        torch.manual_seed(1)
        out_of(network, images(64, 64)).square().sum().backward()
        grads.append([p.grad for p in network.parameters()])
    assert calls == [False, True, True]
    for kept, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(kept, recomputed)


@pytest.mark.parametrize(
    ("frozen", "learning"),
    [
        (-1, {"patch_embed", "absolute_pos_embed", "stages.0", "stages.1", "stages.2", "norm0", "norm1", "norm2"}),
        (0, {"stages.0", "stages.1", "stages.2", "norm0", "norm1", "norm2"}),
        (2, {"stages.2", "norm2"}),
    ],
)
def test_frozen_stages(frozen, learning):
    network = small("SwinTransformer", frozen_stages=frozen, drop_rate=0.5)
    assert network.train() is network
    found = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {".".join(name.split(".")[: 1 + name.startswith("stages")]) for name in found} == learning
    assert network.stages[1].training == ("stages.1" in learning)
    assert network.drop_after_pos.training == (frozen < 0)


def test_positions_are_interpolated_for_another_size():
    network = small("SwinTransformer", pretrain_img_size=(64, 32))
    assert network.absolute_pos_embed.shape == (1, 16 * 8, 8)
    # A ramp of columns stays one, away from the edges.
    network.absolute_pos_embed.data = torch.arange(8.0).repeat(16)[None, :, None].expand(1, 128, 8)
    found = network._positions(32, 16)[0, 4, 4:-4, 0]
    # Bicubic interpolation bends it by a twentieth.
    torch.testing.assert_close(found, torch.arange(4, 12) / 2 - 0.25, rtol=0, atol=6e-2)


def test_windows_across_the_seam_do_not_see_each_other():
    """In a rolled map the first and the last rows share windows; a change above must not be felt below."""
    from detkit.models.backbones.window_attention import ShiftWindowMSA

    torch.manual_seed(0)
    attention = ShiftWindowMSA(4, 2, 4, 2, True, None, 0.0, 0.0, 0.0)
    x = torch.randn(1, 8, 12, 4)
    changed = x.clone()
    changed[:, :2, :2] += 1  # shares its window with the last two rows and columns
    difference = (attention(changed) - attention(x)).abs().amax(dim=(0, 3)) > 1e-6
    assert difference[:2, :2].all()
    difference[:2, :2] = False
    assert not difference.any()


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (5, 7)])
def test_merging_joins_two_by_two(size):
    torch.manual_seed(0)
    merge, x = PatchMerging(3, 5, {"type": "LN"}), torch.randn(2, *size, 3)
    padded = F.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2)).permute(0, 3, 1, 2)
    four = nn.Unfold(2, stride=2)(padded).transpose(1, 2)
    torch.testing.assert_close(merge(x).flatten(1, 2), merge.reduction(merge.norm(four)))


@pytest.mark.parametrize("name", NAMES)
def test_weights_from_nothing(name):
    network = small(name)
    linear = next(module for module in network.modules() if type(module) is nn.Linear or hasattr(module, "out_proj"))
    weight = linear.weight if isinstance(linear, nn.Linear) else linear.out_proj.weight
    assert weight.abs().max() <= 2
    assert 0.005 < weight.std() < 0.04
    for key, value in network.named_parameters():
        if key.endswith(("pos_embed", "relative_position_bias_table")):
            assert 0.01 < value.std() < 0.03, key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SwinTransformer", {"patch_size": 3}, r"strides\[0\] must be 3, got 4"),
        ("SwinTransformer", {"strides": (4, 2, 1)}, r"strides after the first must be 2, got \(4, 2, 1\)"),
        ("SwinTransformer", {"num_heads": (1, 2)}, r"num_heads needs a number for each of 3 stages"),
        ("SwinTransformer", {"num_heads": (1, 3, 4)}, r"num_heads\[1\] must divide 16 channels, got 3"),
        ("SwinTransformer", {"out_indices": (1, 3)}, r"out_indices must lie in \[0, 3\)"),
        ("SwinTransformer", {"frozen_stages": 4}, r"frozen_stages must be -1 to 3, got 4"),
        ("PyramidVisionTransformer", {"num_layers": (1, 1)}, r"num_layers needs one number for each of 4 stages"),
        ("PyramidVisionTransformerV2", {"strides": (4, 2, 2)}, r"Transformer.*V2: strides needs one number"),
        ("PyramidVisionTransformerV2", {"out_indices": ()}, r"out_indices must lie in \[0, 4\)"),
    ],
)
def test_what_does_not_fit_is_told(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({"type": name, **SMALL[name], **options})
