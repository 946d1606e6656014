"""Weights into models: names, shapes, and the report. Cases of Detectron2's checkpoint tests are said to be so."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest
import torch
from torch import nn

from detkit.checkpoints import load_weights, save_checkpoint_file
from detkit.checkpoints.caffe2 import caffe2_name, convert_caffe2
from detkit.checkpoints.key_matching import common_prefix, match_suffixes, revise_keys, strip_wrapper


class Nested(nn.Module):
    """Detectron2's test model: block1.layer1, layer2 and res.layer2."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Module()
        self.block1.layer1 = nn.Linear(2, 3)
        self.layer2 = nn.Linear(3, 2)
        self.res = nn.Module()
        self.res.layer2 = nn.Linear(3, 2)


def flat_state() -> dict[str, torch.Tensor]:
    shapes = {"layer1": (3, 2), "layer2": (2, 3), "res.layer2": (2, 3)}
    state = {}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.rand(shape), f"{name}.bias": torch.rand(shape[:1])}
    return state


def test_report_of_what_does_not_fit(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    state = {"module.0.weight": torch.ones(3, 2), "module.0.bias": torch.ones(4), "module.9.weight": torch.ones(1)}
    save_checkpoint_file({"state_dict": state}, tmp_path / "x.pth")
    report = load_weights(model, tmp_path / "x.pth")
    assert report.loaded == 1
    assert report.missing == ["1.weight", "1.bias"]
    assert report.unexpected == ["9.weight"]
    assert report.mismatched == ["0.bias: file (4,), model (3,)"]
    assert torch.equal(model[0].weight, torch.ones(3, 2))
    assert "2 missing (1.weight, 1.bias)" in str(report)


def test_many_names_are_told_by_what_they_share():
    """Starts that names share: Detectron2's three cases."""
    assert common_prefix(["class", "dlaps_model"]) == ""
    assert common_prefix(["classA", "classB"]) == "class"
    assert common_prefix(["classA", "classB", "clab"]) == "cla"
    model = nn.ModuleDict({"head": nn.Sequential(*(nn.Linear(1, 1) for _ in range(3))), "other": nn.Linear(1, 1)})
    assert "6 missing (all in head)" in str(load_weights(model, model["other"].state_dict(prefix="other.")))


def test_strict_changes_nothing_and_foreign_weights_are_refused():
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"weights and model do not agree: .*missing"):
        load_weights(model, {"weight": torch.ones(1, 2)}, strict=True)
    assert torch.equal(model.weight, before)
    with pytest.raises(ValueError, match="no tensor of it fits this model"):
        load_weights(model, {"conv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="weight is a list, where a tensor was expected"):
        load_weights(model, {"state_dict": {"weight": [1.0, 2.0]}})
    with pytest.raises(ValueError, match="key_matching must be 'exact' or 'suffix', got 'prefix'"):
        load_weights(model, {"weight": before}, key_matching="prefix")
    load_weights(model, {"weight": np.full((1, 2), 3, "f4")})  # after all that, a good one
    assert model.weight.tolist() == [[3, 3]]


@pytest.mark.parametrize("wrapped_file", [False, True])
@pytest.mark.parametrize("wrapped_model", [False, True])
def test_names_that_end_alike_match_if_asked(tmp_path, wrapped_file, wrapped_model):
    """Detectron2's case; without heuristics only the two equal names are loaded, and by a query all three."""
    state = flat_state()
    prefix = "module." if wrapped_file else ""
    path = tmp_path / "x.pth"
    save_checkpoint_file({"model": {prefix + key: value for key, value in state.items()}}, path)
    names = {"block1.layer1": "layer1", "layer2": "layer2", "res.layer2": "res.layer2"}
    for source, matching in ((path, "suffix"), (f"{path}?matching_heuristics=True", None)):
        model = Nested()
        report = load_weights(nn.DataParallel(model) if wrapped_model else model, source, key_matching=matching)
        assert report.complete
        assert report.renamed == {"block1.layer1.weight": "layer1.weight", "block1.layer1.bias": "layer1.bias"}
        for own, given in names.items():
            for kind in ("weight", "bias"):
                tensor = model.get_parameter(f"{own}.{kind}")
                assert torch.equal(tensor, state[f"{given}.{kind}"])
                assert tensor is not state[f"{given}.{kind}"]
    plain = Nested()
    before = copy.deepcopy(plain.block1.layer1.weight)
    assert load_weights(plain, path).loaded == 4
    assert torch.equal(plain.block1.layer1.weight, before)
    assert load_weights(plain, f"{path}?matching_heuristics=True", key_matching="exact").loaded == 4


def test_the_longest_ending_at_a_dot_matches():
    """Detectron2's example."""
    own = ["backbone.body.res2.conv1.weight", "backbone.body.conv1.weight", "head.whatever_conv1.weight"]
    assert match_suffixes(own, ["res2.conv1.weight", "conv1.weight"]) == {
        "backbone.body.res2.conv1.weight": "res2.conv1.weight",
        "backbone.body.conv1.weight": "conv1.weight",
    }


def test_matching_takes_linear_time():
    """Comparing each pair of 60,000 names, as Detectron2 does, takes many minutes."""
    own = [f"backbone.bottom_up.stage{i % 7}.block{i}.conv.weight" for i in range(60_000)]
    given = [name.partition(".")[2] for name in own]
    start = time.process_time()
    assert match_suffixes(own, given) == dict(zip(own, given, strict=True))
    assert time.process_time() - start < 5


def test_one_name_for_two_places_is_an_error():
    model = nn.ModuleDict({name: nn.ModuleDict({"conv1": nn.Linear(1, 1)}) for name in "ab"})
    with pytest.raises(ValueError, match=r"'conv1\.weight' is ambiguous, it could be a\.conv1\.weight or b\.conv1"):
        load_weights(model, {"conv1.weight": torch.ones(1, 1)}, key_matching="suffix")
    model["b"]["conv1"] = nn.Linear(2, 1)  # of another shape: there is one place only
    report = load_weights(model, {"conv1.weight": torch.ones(1, 1)}, key_matching="suffix")
    assert model["a"]["conv1"].weight.item() == 1
    assert report.mismatched == ["b.conv1.weight: file (1, 1), model (1, 2)"]


def test_module_is_stripped_only_if_all_names_have_it():
    """mmengine's runner makes 'ist.0.weight' of 'modulelist.0.weight'."""
    assert strip_wrapper({"module.a": 1, "module.b": 2}) == {"a": 1, "b": 2}
    for names in (["module.a", "b"], ["modulelist.0.weight"], ["module_a"]):
        assert list(strip_wrapper(dict.fromkeys(names))) == names
    model = nn.ModuleDict({"module": nn.Linear(1, 1, bias=False), "x": nn.Linear(1, 1, bias=False)})
    assert load_weights(model, {"module.weight": torch.ones(1, 1), "x.weight": torch.ones(1, 1)}).complete


def test_rules_rename():
    state = {"bbox_head.a": 1, "neck.b": 2}
    assert revise_keys(state, [(r"^bbox_head\.", "head."), ("head", "h")]) == {"h.a": 1, "neck.b": 2}
    with pytest.raises(ValueError, match=r"'bbox_head\.a' and 'neck\.b' both become 'x'"):
        revise_keys(state, [(".*[.].*", "x")])
    with pytest.raises(ValueError, match=r"revise_keys: a pair \(pattern, replacement\) was expected, got 'ab'"):
        revise_keys(state, ["ab"])
    with pytest.raises(ValueError, match=r"revise_keys: '\(' is no regular expression"):
        revise_keys(state, [("(", "")])
    model = nn.Linear(1, 1)
    assert load_weights(model, {"a.weight": torch.ones(1, 1), "a.bias": torch.ones(1)}, True, [(r"^a\.", "")]).complete


@pytest.mark.parametrize("save_wrapped", [False, True])
@pytest.mark.parametrize("load_wrapped", [False, True])
def test_wrapped_and_plain_models_exchange_weights(tmp_path, save_wrapped, load_wrapped):
    """fvcore's case: equal values in memory of their own."""
    one, two = Nested(), Nested()
    saved = nn.DataParallel(one) if save_wrapped else one
    save_checkpoint_file({"model": saved.state_dict()}, tmp_path / "x.pth")
    assert load_weights(nn.DataParallel(two) if load_wrapped else two, tmp_path / "x.pth", strict=True).complete
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(first, second)
        assert first.data_ptr() != second.data_ptr()


def test_another_name_of_a_loaded_tensor_is_not_missing():
    """fvcore's case: y is x."""
    model = nn.Module()
    model.x = nn.Linear(2, 1)
    model.y = model.x
    model.register_buffer("one", torch.zeros(1))
    model.register_buffer("two", model.one)
    report = load_weights(model, {"x.weight": torch.ones(1, 2), "x.bias": torch.ones(1), "one": torch.ones(1)}, True)
    assert report.complete
    assert model.y.weight.tolist() == [[1, 1]]
    assert model.two.item() == 1


def test_lazy_parameters_take_their_shape():
    """fvcore's case."""
    model = nn.LazyLinear(3)
    source = nn.Linear(2, 3)
    assert load_weights(model, source.state_dict(), strict=True).complete
    assert torch.equal(model.weight, source.weight)


def test_constants_of_detectron2_are_neither_missing_nor_unexpected():
    model = nn.Linear(1, 1)
    model.register_buffer("pixel_mean", torch.zeros(3))
    extra = {"proposal_generator.anchor_generator.cell_anchors.0": torch.ones(3, 4), "pixel_std": torch.ones(3)}
    assert load_weights(model, {"weight": torch.ones(1, 1), "bias": torch.ones(1), **extra}, strict=True).complete


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("conv1_w", "stem.conv1.weight"),
        ("res_conv1_bn_s", "stem.conv1.norm.weight"),
        ("res_conv1_bn_b", "stem.conv1.norm.bias"),
        ("res2_0_branch1_w", "res2.0.shortcut.weight"),
        ("res2_0_branch2a_bn_s", "res2.0.conv1.norm.weight"),
        ("res4_22_branch2c_bn_riv", "res4.22.conv3.norm.running_var"),
        ("res3_1_branch2b_gn_beta", "res3.1.conv2.norm.bias"),
        ("pred_w", "linear.weight"),
        ("conv_rpn_fpn2_w", "proposal_generator.rpn_head.conv.weight"),
        ("rpn_bbox_pred_fpn2_b", "proposal_generator.rpn_head.anchor_deltas.bias"),
        ("rpn_cls_logits_w", "proposal_generator.rpn_head.objectness_logits.weight"),
        ("fc6_w", "box_head.fc1.weight"),
        ("fc7_b", "box_head.fc2.bias"),
        ("head_conv1_gn_s", "box_head.conv1.norm.weight"),
        ("cls_score_w", "cls_score.weight"),
        ("bbox_pred_b", "bbox_pred.bias"),
        ("fpn_inner_res4_5_sum_lateral_w", "fpn_lateral4.weight"),
        ("fpn_inner_res5_2_sum_b", "fpn_lateral5.bias"),
        ("fpn_inner_res2_2_sum_lateral_gn_s", "fpn_lateral2.norm.weight"),
        ("fpn_res3_3_sum_w", "fpn_output3.weight"),
        ("fpn_res3_3_sum_gn_b", "fpn_output3.norm.bias"),
        ("_[mask]_fcn2_w", "mask_head.mask_fcn2.weight"),
        ("mask_fcn_logits_w", "mask_head.predictor.weight"),
        ("conv5_mask_b", "mask_head.deconv.bias"),
        ("conv_fcn8_w", "roi_heads.keypoint_head.conv_fcn8.weight"),
        ("kps_score_lowres_w", "roi_heads.keypoint_head.score_lowres.weight"),
        ("kps_score_b", "roi_heads.keypoint_head.score.bias"),
    ],
)
def test_names_of_caffe2(old, new):
    assert caffe2_name(old) == new


def test_two_blobs_of_one_name_are_an_error():
    with pytest.raises(ValueError, match=r"'res2\.0\.branch1_w' and 'res2_0_branch1_w' are both 'res2\.0\.shortcut"):
        convert_caffe2({"res2.0.branch1_w": torch.ones(1), "res2_0_branch1_w": torch.ones(1)})
