"""Detectors of torchvision: their weights under our names give their predictions."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import (
    FCOS,
    FasterRCNN,
    MaskRCNN,
    RetinaNet,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    fcos_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from detkit.checkpoints import class_names, load_weights, open_checkpoint, save_checkpoint_file, schemes
from detkit.checkpoints.torchvision_names import from_torchvision
from detkit.config import load
from detkit.inference import DetInferencer
from detkit.registry import MODELS
from detkit.structures import DetDataSample

CONFIGS = Path(__file__).parents[2] / "configs"
CHANNELS = 32
SIZE = (160, 224)  # of the last levels torchvision rounds the strides
UNUSED = torch.tensor([0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83])  # category ids without objects
SETTINGS = {"min_size": SIZE[0], "max_size": SIZE[1]}


UNLIMITED = {"model.test_cfg.nms_pre": 10**6, "model.test_cfg.max_per_img": 10**6}


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return randomised(resnet.resnet18(norm_layer=FrozenBatchNorm2d)).state_dict()


def randomised(module: nn.Module) -> nn.Module:
    """Statistics and biases that matter: what is moved or left out changes the result."""
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if value.dim() == 1:
                value.uniform_(-0.2, 0.2)
            if value.dim() == 1 and ("var" in name or name.endswith("weight")):
                value.uniform_(0.8, 1.2)
    return module


def pyramid(trunk, levels=(2, 3, 4), eps=0.0) -> BackboneWithFPN:
    extra = LastLevelMaxPool() if 1 in levels else LastLevelP6P7(CHANNELS, CHANNELS)
    body = resnet.resnet18(norm_layer=partial(FrozenBatchNorm2d, eps=eps))
    body.load_state_dict(trunk)
    layers = {f"layer{level}": str(place) for place, level in enumerate(levels)}
    return BackboneWithFPN(body, layers, [32 * 2**level for level in levels], CHANNELS, extra)


def slim(name: str, **options) -> nn.Module:
    """The model of a shipped config with ResNet-18 and few channels."""
    return MODELS.build(slim_config(name, **options).model).eval()


def slim_config(name: str, **options) -> Config:
    head = "model.rpn_head" if "rcnn" in name else "model.bbox_head"
    heads = {f"{head}.in_channels": CHANNELS, f"{head}.feat_channels": CHANNELS}
    trunk = {"model.backbone.depth": 18, "model.neck.in_channels": [64, 128, 256, 512]}
    return load(CONFIGS / name, {**trunk, **heads, "model.neck.out_channels": CHANNELS, **options})


def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def coco_label(category_ids: torch.Tensor) -> torch.Tensor:
    return category_ids - (category_ids[:, None] >= UNUSED).sum(1)


@torch.no_grad()
def predictions(model, rgb):
    sample = DetDataSample(
        metainfo={"img_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0), "pad_shape": SIZE}
    )
    return model.test_step({"inputs": [rgb.flip(0)], "data_samples": [sample]})[0].pred_instances


def assert_same_detections(model, theirs, threshold, power=1):
    """Each detection of one has its like among those of the other; ``power`` makes our scores of torchvision's."""
    theirs.eval()
    rgb = image()
    with torch.no_grad():
        wanted = theirs([rgb / 255])[0]
    found = predictions(model, rgb)
    found = found[found.scores > threshold]
    has_area = ((wanted["boxes"][:, 2:] - wanted["boxes"][:, :2]) > 0).all(1)  # torchvision keeps the others
    boxes, scores = wanted["boxes"][has_area], wanted["scores"][has_area].pow(power)
    labels = coco_label(wanted["labels"][has_area])
    assert len(boxes) == len(found) > 10
    same = (found.labels[:, None] == labels) & ((found.scores[:, None] - scores).abs() < 1e-4)
    same &= (found.bboxes[:, None] - boxes).abs().amax(-1) < 0.01
    assert same.any(0).all()
    assert same.any(1).all()


def test_retinanet(trunk, tmp_path):
    torch.manual_seed(2)
    theirs = RetinaNet(pyramid(trunk), 91, **SETTINGS)
    strengthen(theirs, -10)
    save_checkpoint_file(theirs.state_dict(), tmp_path / "x.pth")
    model = slim("retinanet/retinanet_r50_fpn_torchvision.py")
    report = load_weights(model, tmp_path / "x.pth", strict=True)
    assert report.origin == "torchvision"
    assert_same_detections(model, theirs, 0.05)
    cfg = slim_config("retinanet/retinanet_r50_fpn_torchvision.py")
    cfg.test_dataloader.dataset.pipeline[1].scale = SIZE[::-1]
    found = DetInferencer(tmp_path / "x.pth", "cpu", cfg, score_thr=0.05)(image().flip(0).permute(1, 2, 0).numpy())[0]
    assert len(found) > 10
    assert set(found.names) <= set(class_names(open_checkpoint(tmp_path / "x.pth")))
    # What torchvision publishes has the names of 2020.
    state = theirs.state_dict()
    old = {re.sub(r"(_blocks\.\d)\.0\.", r"\1.", old_tower(key)): value for key, value in state.items()}
    assert old.keys() != state.keys()
    converted, again = from_torchvision(state), from_torchvision(old)
    assert converted.keys() == again.keys()
    assert all(torch.equal(converted[key], again[key]) for key in converted)


def old_tower(key: str) -> str:
    for place in range(4):
        key = key.replace(f".conv.{place}.0.", f".conv.{2 * place}.")
    return key


@torch.no_grad()
def strengthen(theirs: nn.Module, bias: float) -> None:
    """Scores and boxes that differ from place to place, and none of categories that COCO does not use."""
    scores, boxes = theirs.head.classification_head, theirs.head.regression_head
    for layer in [*scores.conv.modules(), *boxes.conv.modules()]:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    randomised(theirs.head)
    levels = list(theirs.backbone(theirs.transform([image() / 255])[0].tensors).values())
    for tower, layer, spread in ((scores.conv, scores.cls_logits, 1.5), (boxes.conv, boxes.bbox_reg, 0.3)):
        layer.weight.normal_()
        layer.weight *= spread / torch.cat([layer(tower(level)).flatten() for level in levels]).std()
    scores.cls_logits.bias.normal_(bias, 0.5)
    scores.cls_logits.bias.view(-1, 91)[:, UNUSED] = -1000


def test_fcos(trunk):
    torch.manual_seed(3)
    limits = {"topk_candidates": 10**6, "detections_per_img": 10**6, "score_thresh": 0.1}
    theirs = FCOS(pyramid(trunk, eps=1e-5), 91, **SETTINGS, **limits)
    strengthen(theirs, -8)
    model = slim("fcos/fcos_r50_fpn_torchvision.py", **UNLIMITED, **{"model.test_cfg.score_thr": 0.01})
    assert load_weights(model, theirs.state_dict(), strict=True).origin == "torchvision"
    assert_same_detections(model, theirs, 0.01, power=2)


@pytest.mark.parametrize("kind", ["faster", "mask"])
@torch.no_grad()
def test_two_stages(trunk, kind):
    torch.manual_seed(4)
    threshold = 0.05 if kind == "faster" else 0.3  # masks of few boxes
    limits = {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 300, "box_detections_per_img": 10**6}
    builder = MaskRCNN if kind == "mask" else FasterRCNN
    theirs = builder(pyramid(trunk, (1, 2, 3, 4)), 91, **SETTINGS, **limits, box_score_thresh=threshold).eval()
    if kind == "mask":
        theirs.roi_heads.mask_head = MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1)
        theirs.roi_heads.mask_predictor = MaskRCNNPredictor(CHANNELS, CHANNELS, 91)
    levels = list(theirs.backbone(theirs.transform([image() / 255])[0].tensors).values())
    head = randomised(theirs.rpn.head)
    nn.init.kaiming_normal_(head.conv[0][0].weight, nonlinearity="relu")
    for layer, spread in ((head.cls_logits, 1.0), (head.bbox_pred, 0.2)):
        layer.weight.normal_()
        layer.weight *= spread / torch.cat([layer(head.conv(level)).flatten() for level in levels]).std()
    seen = {}
    theirs.roi_heads.box_head.register_forward_hook(lambda _module, _inputs, output: seen.update(features=output))
    theirs([image() / 255])
    for layer, spread in (
        (theirs.roi_heads.box_predictor.cls_score, 2.0),
        (theirs.roi_heads.box_predictor.bbox_pred, 1.0),
    ):
        layer.weight.normal_()
        layer.weight *= spread / layer(seen["features"]).std()
        layer.bias.uniform_(-1, 1)
    theirs.roi_heads.box_predictor.cls_score.bias[UNUSED[1:]] = -1000
    parts = ("roi_extractor.out_channels", "head.in_channels", "head.conv_out_channels")
    masks = {f"model.roi_head.mask_{part}": CHANNELS for part in parts}
    model = slim(
        f"{kind}_rcnn/{kind}-rcnn_r50_fpn_torchvision.py",
        **{
            **(masks if kind == "mask" else {}),
            "model.roi_head.bbox_roi_extractor.out_channels": CHANNELS,
            "model.roi_head.bbox_head.in_channels": CHANNELS,
            "model.test_cfg.rpn.nms_pre": 300,
            "model.test_cfg.rpn.max_per_img": 300,
            "model.test_cfg.rcnn.max_per_img": 10**6,
            "model.test_cfg.rcnn.score_thr": threshold,
        },
    )
    assert load_weights(model, theirs.state_dict(), strict=True).origin == "torchvision"
    assert_same_detections(model, theirs, threshold)
    if kind == "mask":
        assert_same_masks(model, theirs)


def assert_same_masks(model, theirs):
    """The logits of the same boxes, before they are pasted."""
    seen = {}
    theirs.roi_heads.mask_predictor.register_forward_hook(lambda _module, _inputs, output: seen.update(masks=output))
    rgb = image()
    boxes = theirs([rgb / 255])[0]["boxes"]
    batch = model.data_preprocessor({"inputs": [rgb.flip(0)], "data_samples": None})["inputs"]
    head = model.roi_head
    found = head.mask_head(head.mask_roi_extractor(model.extract_feat(batch)[:4], nn.functional.pad(boxes, (1, 0))))
    used = [row for row in range(91) if row not in UNUSED]
    assert found.std() > 1e-3
    torch.testing.assert_close(found, seen["masks"][:, used], rtol=1e-3, atol=1e-4)


BUILDERS = {
    "retinanet/retinanet_r50_fpn_torchvision.py": retinanet_resnet50_fpn,
    "retinanet/retinanet_r50_fpn_torchvision-v2.py": retinanet_resnet50_fpn_v2,
    "fcos/fcos_r50_fpn_torchvision.py": fcos_resnet50_fpn,
    "faster_rcnn/faster-rcnn_r50_fpn_torchvision.py": fasterrcnn_resnet50_fpn,
    "faster_rcnn/faster-rcnn_r50_fpn_torchvision-v2.py": fasterrcnn_resnet50_fpn_v2,
    "mask_rcnn/mask-rcnn_r50_fpn_torchvision.py": maskrcnn_resnet50_fpn,
    "mask_rcnn/mask-rcnn_r50_fpn_torchvision-v2.py": maskrcnn_resnet50_fpn_v2,
}


@pytest.mark.parametrize("config", BUILDERS)
def test_every_tensor_has_its_place(config):
    """Names and shapes of the real models, both ways."""
    with torch.device("meta"):
        theirs = BUILDERS[config](weights=None, weights_backbone=None).state_dict()
        own = MODELS.build(load(CONFIGS / config).model).state_dict()
    converted = from_torchvision(theirs)
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in own.items()}
    assert class_names({"state_dict": theirs})[::79] == ["person", "toothbrush"]
    assert len(class_names({"state_dict": theirs})) == 80


@pytest.mark.parametrize("count", [91, 4])
def test_rows_of_two_stage_heads_are_those_of_their_classes(count):
    """Category 13 (stop sign) is label 11, as 12 is not used; classes of one's own follow the background."""
    heads = (
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    )
    rows = torch.arange(float(count))
    state = {f"{name}.bias": rows.repeat_interleave(4) if "bbox" in name else rows for name in heads}
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(count, 1)
    found = from_torchvision(state)
    labels = torch.arange(1, count) if count == 4 else torch.tensor([i for i in range(91) if i not in UNUSED])
    assert found["roi_head.bbox_head.fc_cls.bias"].tolist() == [*labels.tolist(), 0]
    assert found["roi_head.bbox_head.fc_reg.bias"].tolist() == labels.repeat_interleave(4).tolist()
    assert found["roi_head.mask_head.conv_logits.bias"].tolist() == labels.tolist()
    if count == 91:
        assert labels[11] == 13
        names = class_names({"state_dict": {"backbone.body.x": rows, **state}})
        assert names[11] == "stop sign"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_coco-eeacb38b.pth"),
        ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"),
        ("resnet50", "resnet50-0676ba61.pth"),
        ("resnet50.IMAGENET1K_V2", "resnet50-11ad3fa6.pth"),
    ],
)
def test_names_of_torchvision_lead_to_its_files(name, file):
    assert schemes._torchvision(name) == f"https://download.pytorch.org/models/{file}"


def test_detectors_without_a_partner_are_refused():
    state = {"backbone.body.conv1.weight": torch.ones(1), "roi_heads.keypoint_head.0.weight": torch.ones(1)}
    with pytest.raises(ValueError, match="checkpoint: the checkpoint is of a keypoint detector of torchvision"):
        load_weights(nn.Conv2d(1, 1, 1), state)
