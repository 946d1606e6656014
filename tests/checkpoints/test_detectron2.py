"""Weights of Detectron2's model zoo under our names; the shapes they must have are MMDetection's."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.detectron2_states import DETECTORS, fpn, layer
from torch import nn

from detkit.checkpoints import class_names, load_weights
from detkit.checkpoints.origins import with_own_names
from detkit.config import load
from detkit.registry import MODELS
from detkit.task_modules import AnchorGenerator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifest():
    return json.loads(gzip.decompress((ROOT / "tests/data/state_dicts.json.gz").read_bytes()))


def translated(state, own=(), **content):
    return with_own_names(state, content, own)[0]


@pytest.mark.parametrize("config", DETECTORS)
def test_every_tensor_has_its_place(manifest, config):
    own = {key: tuple(shape) for key, shape in shapes_of(manifest[config]).items() if "num_batches" not in key}
    state = {key: torch.empty(shape, device="meta") for key, shape in DETECTORS[config].items()}
    assert {key: tuple(value.shape) for key, value in translated(state, own).items()} == own


def shapes_of(entry):
    return entry["keys"]


@pytest.mark.parametrize(
    ("scores", "boxes", "options", "sizes"),
    [
        (
            "proposal_generator.rpn_head.objectness_logits",
            "proposal_generator.rpn_head.anchor_deltas",
            {"scales": [2, 4, 8, 16, 32], "strides": [16]},
            [32, 64, 128, 256, 512],
        ),
        (
            "head.cls_score",
            "head.bbox_pred",
            {"octave_base_scale": 4, "scales_per_octave": 3, "strides": [16]},
            [64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)],
        ),
    ],
)
def test_anchors_are_reordered(scores, boxes, options, sizes):
    """Detectron2 has all ratios of a size in a row: the predictions of an anchor stay with it."""
    theirs = torch.tensor(
        [[(size**2 / ratio) ** 0.5, (size**2 / ratio) ** 0.5 * ratio] for size in sizes for ratio in (0.5, 1.0, 2.0)]
    )
    mine = AnchorGenerator(ratios=[0.5, 1.0, 2.0], **options).base_anchors[0]
    classes = 1 if "proposal" in scores else 2
    state = {
        f"{boxes}.weight": theirs.repeat(1, 2).reshape(-1, 1, 1, 1),
        f"{boxes}.bias": theirs.repeat(1, 2).flatten(),
        f"{scores}.weight": theirs.prod(1).repeat_interleave(classes).reshape(-1, 1, 1, 1),
        f"{scores}.bias": (theirs[:, :1] + torch.arange(classes)).flatten(),
        "head.cls_subnet.0.weight": torch.ones(1, 1, 3, 3),
    }
    found = translated(state)
    part = "rpn_head.rpn" if classes == 1 else "bbox_head.retina"
    sizes = mine[:, 2:] - mine[:, :2]
    for kind in ("weight", "bias"):
        torch.testing.assert_close(found[f"{part}_reg.{kind}"].reshape(-1, 4), sizes.repeat(1, 2))
    torch.testing.assert_close(
        found[f"{part}_cls.weight"].reshape(-1, classes), sizes.prod(1)[:, None].repeat(1, classes)
    )
    torch.testing.assert_close(found[f"{part}_cls.bias"].reshape(-1, classes), sizes[:, :1] + torch.arange(classes))


def small_retinanet() -> dict[str, np.ndarray]:
    """ResNet-18 and 16 channels, as Detectron2 names them."""
    own = small_model().state_dict()
    names = {
        r"backbone.conv1.": "backbone.bottom_up.stem.conv1.",
        r"backbone.bn1.": "backbone.bottom_up.stem.conv1.norm.",
        "neck.lateral_convs.": "backbone.fpn_lateral",
    }
    rng = np.random.default_rng(0)
    state = {}
    for key, value in own.items():
        if "num_batches" in key:
            continue
        for old, new in names.items():
            key = key.replace(old, new)
        parts = key.split(".")
        if key.startswith("backbone.layer"):
            stage = f"backbone.bottom_up.res{int(parts[1][5]) + 1}.{parts[2]}"
            rest = ".".join(parts[3:])
            for old, new in (("bn1.", "conv1.norm."), ("bn2.", "conv2.norm."), ("downsample.0.", "shortcut.")):
                rest = rest.replace(old, new)
            key = f"{stage}.{rest.replace('downsample.1.', 'shortcut.norm.')}"
        elif "fpn_lateral" in key:
            key = f"backbone.fpn_lateral{int(parts[1][-1]) + 3}.{parts[-1]}"
        elif key.startswith("neck.fpn_convs"):
            level = int(parts[2]) + 3
            key = f"backbone.{f'fpn_output{level}' if level < 6 else f'top_block.p{level}'}.{parts[-1]}"
        else:
            for old, new in (("cls_convs", "cls_subnet"), ("reg_convs", "bbox_subnet")):
                if old in key:
                    key = f"head.{new}.{2 * int(parts[2])}.{parts[-1]}"
            key = key.replace("bbox_head.retina_cls", "head.cls_score").replace(
                "bbox_head.retina_reg", "head.bbox_pred"
            )
        state[key] = rng.normal(size=tuple(value.shape)).astype("f4")
    return state


def small_model() -> nn.Module:
    options = {"model.backbone.depth": 18, "model.backbone.base_channels": 8, "model.backbone.init_cfg": None}
    options |= {"model.neck.in_channels": [8, 16, 32, 64], "model.neck.out_channels": 16}
    options |= {"model.bbox_head.in_channels": 16, "model.bbox_head.feat_channels": 16}
    return MODELS.build(load(ROOT / "configs/retinanet/retinanet_r50_fpn_1x_coco.py", options).model)


def test_a_file_of_the_zoo_is_loaded(tmp_path):
    state = small_retinanet()
    extra = {"pixel_mean": np.zeros((3, 1, 1)), "anchor_generator.cell_anchors.0": np.zeros((9, 4))}
    content = {"model": {**state, **extra}, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content, protocol=2))
    model = small_model()
    report = load_weights(model, tmp_path / "model_final.pkl", strict=True)
    assert report.origin == "Detectron2"
    assert str(report) == f"{len(state)} tensors loaded from names of Detectron2"
    loaded = model.state_dict()
    assert np.array_equal(loaded["neck.fpn_convs.4.conv.weight"], state["backbone.top_block.p7.weight"])
    assert np.array_equal(
        loaded["backbone.layer2.0.downsample.1.weight"], state["backbone.bottom_up.res3.0.shortcut.norm.weight"]
    )
    assert np.array_equal(loaded["bbox_head.reg_convs.3.conv.bias"], state["head.bbox_subnet.6.bias"])
    assert class_names({"state_dict": {key: torch.as_tensor(value) for key, value in state.items()}}) is None
    names = class_names({"model": state, "__author__": "Detectron2 Model Zoo"})
    assert (len(names), names[0]) == (80, "person")


def test_a_backbone_of_caffe2_starts_a_resnet(tmp_path):
    model = small_model().backbone
    blobs = {"conv1_w": torch.ones(8, 3, 7, 7), "res_conv1_bn_s": torch.full((8,), 2.0)}
    blobs["res3_0_branch1_w"] = torch.full((16, 8, 1, 1), 3.0)
    (tmp_path / "R-18.pkl").write_bytes(
        pickle.dumps({"blobs": {key: value.numpy() for key, value in blobs.items()}}, protocol=2)
    )
    report = load_weights(model, tmp_path / "R-18.pkl")
    assert report.loaded == 5  # with the statistics of the norm, which are in its scale there
    assert not report.unexpected
    assert model.bn1.running_mean.tolist() == [0] * 8
    assert (model.bn1.running_var + model.bn1.eps - 1).abs().max() < 1e-6
    assert model.bn1.weight.tolist() == [2] * 8
    assert model.layer2[0].downsample[0].weight.unique().tolist() == [3]


def test_norms_and_convolutions_of_heads_keep_their_places():
    state = {
        "backbone.bottom_up.res2.0.conv1.norm.weight": torch.ones(1),  # no statistics: a group norm
        "backbone.fpn_lateral2.norm.weight": torch.ones(1),
        "backbone.fpn_output3.norm.running_mean": torch.ones(1),
        "roi_heads.box_head.conv4.norm.weight": torch.ones(1),
        "roi_heads.box_head.conv1.weight": torch.ones(1, 1, 3, 3),
        "roi_heads.mask_head.mask_fcn2.norm.bias": torch.ones(1),
        "proposal_generator.rpn_head.conv.conv1.weight": torch.ones(1, 1, 3, 3),
        "backbone.bottom_up.res4.5.conv2_offset.bias": torch.ones(1),
    }
    assert list(translated(state)) == [
        "backbone.layer1.0.gn1.weight",
        "neck.lateral_convs.0.gn.weight",
        "neck.fpn_convs.1.bn.running_mean",
        "roi_head.bbox_head.shared_convs.3.gn.weight",
        "roi_head.bbox_head.shared_convs.0.conv.weight",
        "roi_head.mask_head.convs.1.gn.bias",
        "rpn_head.rpn_conv.1.conv.weight",
        "backbone.layer3.5.conv2.conv_offset.bias",
    ]


def test_detectors_without_a_partner_are_refused():
    state = {key: torch.ones(1) for key in [*fpn(2), *layer("roi_heads.keypoint_head.conv_fcn1", 1)]}
    with pytest.raises(ValueError, match="zoo: the checkpoint is of a keypoint detector of Detectron2; detkit has no"):
        load_weights(nn.Conv2d(1, 1, 1), state, name="zoo")


def test_a_model_with_such_names_takes_them_as_they_are():
    model = nn.ModuleDict({"proposal_generator": nn.Linear(1, 1)})
    report = load_weights(
        model, {f"proposal_generator.{kind}": value for kind, value in nn.Linear(1, 1).state_dict().items()}
    )
    assert report.complete
    assert report.origin is None
