"""What holds for every dense head: parts that do not fit are refused, wild predictions stay finite, modes agree."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync
from reference import DATA, arguments, case_named, load_weights
from two_processes import assert_mean_of_both, losses_of_two_processes

from detkit.models import FCOS, FoveaHead, RepPointsHead, RPNHead
from detkit.registry import MODELS
from detkit.structures import DetDataSample

# See test_query_heads.py.
OF_QUERIES = {"DETRHead", "DINOHead", "DeformableDETRHead", "DeformableDETRHeadTwoStage"}
EVERY = sorted({path.stem for path in (DATA / "dense_heads").glob("*.pt")} - OF_QUERIES)
SOFTMAX = {"type": "CrossEntropyLoss"}
BCE = {"type": "CrossEntropyLoss", "use_sigmoid": True}
SUM = {"reduction": "sum"}
OWN = {"num_classes": 2, "in_channels": 8}
IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5}
RANDOM = {"type": "RandomSampler", "num": 4, "pos_fraction": 0.5}
SQUARE = {"type": "AnchorGenerator", "ratios": [1.0], "scales": [8]}
TWO_RANGES = {"type": "FCOSAssigner", "regress_ranges": [(-1, 64), (64, 1e8)]}
THREE_RANGES = {"type": "FCOSAssigner", "regress_ranges": [(-1, 64), (64, 128), (128, 1e8)]}
THREE_SCALES = {"type": "FoveaAssigner", "scale_ranges": [(1, 64), (32, 128), (64, 1e8)]}
NO_CHANNEL = "CrossEntropyLoss with use_sigmoid=False needs a channel for the background"
REFUSED = [
    ("ATSSHead", {"loss_centerness": SOFTMAX}, f"loss_centerness: {NO_CHANNEL}"),
    ("CenterNetHead", {"loss_center_heatmap": {"type": "FocalLoss"}}, "loss_center_heatmap: FocalLoss learns labels"),
    ("CenterNetHead", {"loss_wh": {"type": "GIoULoss"}}, "loss_wh: GIoULoss learns boxes"),
    ("CenterNetHead", {"loss_offset": BCE}, "loss_offset: CrossEntropyLoss learns labels"),
    ("CenterNetHead", {"test_cfg": {"topk": 0}}, "test_cfg.topk must be at least 1, got 0"),
    ("CenterNetHead", {"test_cfg": {"max_per_img": -1}}, "test_cfg.max_per_img must be at least 1, got -1"),
    ("CenterNetHead", {"test_cfg": {"local_maximum_kernel": 2}}, "test_cfg.local_maximum_kernel must be odd, got 2"),
    ("CenterNetUpdateHead", {"loss_cls": {"type": "FocalLoss"}}, "loss_cls: FocalLoss learns labels"),
    ("CenterNetUpdateHead", {"loss_bbox": {"type": "L1Loss"}}, "loss_bbox: L1Loss learns coordinates; here are boxes"),
    ("FCOSHead", {"loss_cls": SOFTMAX}, f"loss_cls: {NO_CHANNEL}"),
    ("FCOSHead", {"loss_centerness": {"type": "FocalCustomLoss", "num_classes": 1}}, "loss_centerness: Focal.* scores"),
    ("FCOSHead", {"train_cfg": {"assigner": THREE_RANGES}}, "train_cfg.assigner: FCOSAssigner has ranges of 3 levels"),
    ("FoveaHead", {"train_cfg": {"assigner": THREE_SCALES}}, "train_cfg.assigner: FoveaAssigner has ranges of 3.* 5"),
    ("FCOSHead", {"loss_centerness": {"type": "QualityFocalLoss"}}, "loss_centerness: QualityFocalLoss learns labels"),
    ("FoveaHead", {"loss_cls": SOFTMAX}, f"loss_cls: {NO_CHANNEL}"),
    ("FSAFHead", {"loss_cls": SOFTMAX}, f"loss_cls: {NO_CHANNEL}"),
    ("FSAFHead", {"loss_cls": {"type": "GHMC"}}, "loss_cls: GHMC divides by a number of its own"),
    ("GARetinaHead", {"loss_loc": SOFTMAX}, f"loss_loc: {NO_CHANNEL}"),
    ("GARetinaHead", {"loss_shape": BCE}, "loss_shape: CrossEntropyLoss learns labels"),
    ("GARetinaHead", {"loss_bbox": {"type": "GIoULoss"}}, "loss_bbox: GIoULoss learns boxes.*reg_decoded_bbox=True"),
    ("GARetinaHead", {"anchor_coder": {"type": "YOLOBBoxCoder"}}, "anchor_coder: YOLOBBoxCoder codes boxes by boxes"),
    ("GARetinaHead", {"loc_filter_thr": 2}, r"loc_filter_thr must be in \[0, 1\], got 2"),
    ("GARetinaHead", {"train_cfg": {"assigner": IOU}}, "train_cfg needs both assigner and ga_assigner"),
    (
        "GARetinaHead",
        {"train_cfg": {"center_ratio": 0.6}},
        "train_cfg needs 0 < center_ratio <= ignore_ratio <= 1, got",
    ),
    (
        "GARetinaHead",
        {"train_cfg": {"assigner": IOU, "ga_assigner": {"type": "PointAssigner"}}},
        "train_cfg.ga_assigner: PointAssigner assigns points",
    ),
    ("GARetinaHead", {"train_cfg": {"ga_sampler": RANDOM}}, "train_cfg.ga_sampler: RandomSampler adds objects"),
    (
        "GARetinaHead",
        {"approx_anchor_generator": {**SQUARE, "strides": [4, 8, 16, 32, 64]}},
        "approx_anchor_generator needs octave_base_scale",
    ),
    ("GARPNHead", {"num_classes": 2}, "num_classes must be 1, as objects have no class here; got 2"),
    ("GARPNHead", {"num_classes": 1, "loss_cls": SOFTMAX}, "loss_cls must have use_sigmoid=True"),
    ("PAAHead", {"loss_cls": SOFTMAX}, f"loss_cls: {NO_CHANNEL}"),
    ("PAAHead", {"loss_centerness": {"type": "GIoULoss"}}, "loss_centerness: GIoULoss learns boxes"),
    ("RepPointsHead", {"loss_cls": {"type": "QualityFocalLoss"}}, "loss_cls: QualityFocalLoss learns labels with"),
    ("RepPointsHead", {"loss_bbox_init": BCE}, "loss_bbox_init: CrossEntropyLoss learns labels"),
    ("RepPointsHead", {"loss_bbox_refine": BCE}, "loss_bbox_refine: CrossEntropyLoss learns labels"),
    ("RepPointsHead", {"train_cfg": {"init": {"assigner": THREE_RANGES}}}, "train_cfg.assigner: FCOSAssigner has"),
    ("RTMDetHead", {"train_cfg": {"assigner": TWO_RANGES}}, "train_cfg.assigner: FCOSAssigner has ranges of 2.* has 3"),
    ("RTMDetHead", {"loss_cls": {"type": "FocalLoss"}}, "loss_cls: FocalLoss learns labels; here are labels with"),
    ("RTMDetHead", {"bbox_coder": {"type": "DeltaXYWHBBoxCoder"}}, "bbox_coder: DeltaXYWHBBoxCoder codes"),
    ("RTMDetHead", {"loss_bbox": BCE}, "loss_bbox: CrossEntropyLoss learns labels"),
    ("RTMDetHead", {"pred_kernel_size": 2}, "pred_kernel_size must be odd, got 2"),
    ("RTMDetSepBNHead", {"pred_kernel_size": 0}, "pred_kernel_size must be odd, got 0"),
    ("SABLRetinaHead", {"bbox_coder": {"type": "DeltaXYWHBBoxCoder"}}, "bbox_coder: DeltaXYWHBBoxCoder codes"),
    ("SABLRetinaHead", {"loss_cls": {"type": "L1Loss"}}, "loss_cls: L1Loss learns coordinates"),
    ("SABLRetinaHead", {"loss_bbox_cls": SOFTMAX}, f"loss_bbox_cls: {NO_CHANNEL}"),
    ("SABLRetinaHead", {"loss_bbox_reg": {"type": "GIoULoss"}}, "loss_bbox_reg: GIoULoss learns boxes"),
    ("SSDHead", {"loss_cls": {"type": "L1Loss"}}, "loss_cls: L1Loss learns coordinates"),
    ("SSDHead", {"loss_bbox": {"type": "GIoULoss"}}, "loss_bbox: GIoULoss learns boxes.*reg_decoded_bbox=True"),
    ("SSDHead", {"bbox_coder": {"type": "YOLOBBoxCoder"}}, "bbox_coder: YOLOBBoxCoder codes boxes by boxes with"),
    ("TOODHead", {"initial_loss_cls": BCE}, "initial_loss_cls: this head gives probabilities"),
    ("VFNetHead", {"use_vfl": False, "loss_cls_fl": SOFTMAX}, f"loss_cls_fl: {NO_CHANNEL}"),
    ("VFNetHead", {"loss_bbox_refine": BCE}, "loss_bbox_refine: CrossEntropyLoss learns labels"),
    ("YOLOFHead", {"bbox_coder": {"type": "DistancePointBBoxCoder"}}, "bbox_coder: DistancePointBBoxCoder codes"),
    ("YOLOFHead", {"loss_bbox": {"type": "GaussianFocalLoss"}}, "loss_bbox: GaussianFocalLoss learns heatmaps"),
    ("YOLOV3Head", {"bbox_coder": {"type": "DeltaXYWHBBoxCoder"}}, "bbox_coder: DeltaXYWHBBoxCoder codes"),
    ("YOLOV3Head", {"loss_xy": {**SOFTMAX, **SUM}}, f"loss_xy: {NO_CHANNEL}"),
    ("YOLOV3Head", {"loss_wh": {**BCE, **SUM}}, "loss_wh: CrossEntropyLoss learns labels"),
    ("YOLOXHead", {"train_cfg": {"assigner": TWO_RANGES}}, "train_cfg.assigner: FCOSAssigner has ranges of 2 levels"),
    ("YOLOXHead", {"loss_cls": {**SOFTMAX, **SUM}}, f"loss_cls: {NO_CHANNEL}"),
    ("YOLOXHead", {"loss_obj": {"type": "GIoULoss", **SUM}}, "loss_obj: GIoULoss learns boxes"),
    ("YOLOXHead", {"loss_bbox": {**BCE, **SUM}}, "loss_bbox: CrossEntropyLoss learns labels"),
    ("YOLOXHead", {"loss_l1": {"type": "GIoULoss", **SUM}}, "loss_l1: GIoULoss learns boxes"),
]


CHANNELS = {
    "CenterNetHead": {"feat_channels": 8},
    "SSDHead": {"in_channels": [8] * 6},
    "YOLOV3Head": {"in_channels": [8] * 3},
}


@pytest.mark.parametrize(
    ("head", "part", "message"), REFUSED, ids=[f"{row[0]}-{next(iter(row[1]))}" for row in REFUSED]
)
def test_a_part_that_does_not_fit_is_refused_when_the_head_is_built(head, part, message):
    with pytest.raises(ValueError, match=f"{head}: {message}"):
        MODELS.build({"type": head, **OWN, **CHANNELS.get(head, {}), **part})


def reference_head(name, **changes):
    """The head of the reference's first loss case, with its features and samples."""
    case = case_named(f"dense_heads/{name}", "loss")
    head = MODELS.build({**case["config"], **changes})
    if not changes:
        load_weights(head, case)
    inputs = arguments(case["inputs"])
    return head, inputs["x"], inputs["batch_data_samples"]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("FCOSHead", ["conv_reg"]),
        ("TOODHead", ["tood_reg"]),
        ("VFNetHead", ["vfnet_reg", "vfnet_reg_refine"]),
    ],
)
def test_an_exponential_that_overflows_has_finite_losses_gradients_and_boxes(name, layers):
    head, features, samples = reference_head(name)
    with torch.no_grad():
        for layer in layers:
            bias = head.get_submodule(layer).bias
            bias += torch.linspace(-1000, 1000, len(bias))
    losses = head.loss(features, samples)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)
    with torch.no_grad():
        assert all(torch.isfinite(found.bboxes).all() for found in head.eval().predict(features, samples))


@pytest.mark.parametrize("name", EVERY)
def test_an_object_without_area_has_finite_losses_and_gradients(name):
    head, features, samples = reference_head(name)
    for sample in samples:
        boxes = sample.gt_instances.bboxes
        boxes[::2, 2] = boxes[::2, 0]
        boxes[1::2, 3] = boxes[1::2, 1]
    losses = head.loss(features, samples)
    total = sum(loss for key, loss in losses.items() if "loss" in key)
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["ATSSHead", "FCOSHead", "PAAHead"])
def test_how_central_a_prior_is_may_be_learnt_by_a_loss_with_weights_of_another_name(name):
    head, features, samples = reference_head(name, loss_centerness={"type": "GHMC"})
    losses = head.loss(features, samples)
    assert losses["loss_iou" if name == "PAAHead" else "loss_centerness"] > 0


@pytest.mark.parametrize(
    ("head", "layer"),
    [
        (FoveaHead(2, 8, feat_channels=8, stacked_convs=1, with_deform=True), "conv_reg"),
        (
            RepPointsHead(2, 8, point_feat_channels=8, feat_channels=8, stacked_convs=1, use_grid_points=True),
            "reppoints_pts_init_out",
        ),
    ],
    ids=["FoveaHead", "RepPointsHead"],
)
def test_a_convolution_that_looks_where_a_box_says_is_finite_whatever_the_box(head, layer):
    with torch.no_grad():
        head.get_submodule(layer).bias.fill_(1000)
        assert all(torch.isfinite(level).all() for level in head([torch.rand(1, 8, 4, 4)] * 5)[0])


@pytest.mark.parametrize("name", ["FCOSHead", "RetinaHead", "TOODHead", "VFNetHead"])
def test_the_loss_is_the_same_when_it_is_evaluated(name):
    head, features, samples = reference_head(name)
    trained = head.train().loss(features, samples)
    with torch.no_grad():
        evaluated = head.eval().loss(features, samples)
    assert trained.keys() == evaluated.keys()
    for loss, value in trained.items():
        torch.testing.assert_close(evaluated[loss], value.detach())


@pytest.mark.parametrize("name", ["FCOSHead", "GFLHead", "RetinaHead"])
def test_pos_weight_weighs_positives(name):
    head, features, samples = reference_head(name)
    config = case_named(f"dense_heads/{name}", "loss")["config"].get("train_cfg") or {}
    heavy, *_ = reference_head(name, train_cfg={**config, "pos_weight": 5.0})
    heavy.load_state_dict(head.state_dict())
    assert heavy.loss(features, samples)["loss_cls"] > head.loss(features, samples)["loss_cls"]


def sample_of(labels):
    sample = DetDataSample(metainfo={"img_shape": (32, 32), "pad_shape": (32, 32)})
    boxes = torch.tensor([[2.0, 2, 20, 22], [10, 12, 30, 30]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor(labels))
    return sample


def test_a_region_proposal_network_knows_one_class_and_so_does_its_assigner():
    """TaskAlignedAssigner looks up the score of an object's class."""
    anchors = {"type": "AnchorGenerator", "scales": [4], "ratios": [1.0], "strides": [4]}
    assigner = {"type": "TaskAlignedAssigner", "topk": 4}
    torch.manual_seed(0)
    head = RPNHead(8, feat_channels=8, anchor_generator=anchors, train_cfg={"assigner": assigner})
    features = [torch.rand(1, 8, 8, 8)]
    with NoSync():
        of_classes = head.loss(features, [sample_of([7, 3])])
    assert of_classes == head.loss(features, [sample_of([0, 0])])
    assert of_classes["num_pos_anchors"] > 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("FoveaHead", {"strides": [8], "base_edge_list": [16], "scale_ranges": [[1, 64]]}),
        ("RTMDetHead", {"anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8]}}),
        ("RTMDetSepBNHead", {"anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8]}}),
        ("VFNetHead", {"strides": [8], "regress_ranges": [[-1, 1e8]], "bbox_norm_type": "stride", "norm_cfg": None}),
        ("YOLOXHead", {"strides": [8]}),
    ],
)
def test_one_level_and_no_tower(name, changes):
    no_tower = {"num_classes": 2, "in_channels": 8, "feat_channels": 32, "stacked_convs": 0}
    train_cfg = {"assigner": {"type": "ATSSAssigner", "topk": 4}} if name == "VFNetHead" else None
    head = MODELS.build({"type": name, **no_tower, **changes, "train_cfg": train_cfg})
    features = [torch.rand(1, 8, 4, 4)]
    losses = head.loss(features, [sample_of([1, 0])])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert len(head.eval().predict(features, [sample_of([1, 0])])) == 1


def test_one_level_has_no_greatest_distance():
    with pytest.raises(ValueError, match="VFNetHead: bbox_norm_type 'reg_denom' needs more than one level"):
        MODELS.build({"type": "VFNetHead", **OWN, "strides": [8], "regress_ranges": [[-1, 1e8]]})


@pytest.mark.parametrize("key", ["train_cfg", "test_cfg"])
def test_what_a_detector_would_overwrite_in_its_head_is_refused(key):
    with pytest.raises(ValueError, match=f"FCOS: bbox_head.{key} is not read; set {key} of the detector"):
        FCOS({"type": "ResNet", "depth": 18}, bbox_head={"type": "FCOSHead", **OWN, key: {"pos_weight": 2}})


# YOLOv3 divides its sums by nothing, as MMDetection does.
ALIKE = sorted(set(EVERY) - {"YOLOV3Head"})


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("which", ["loss_one_without_gt", "loss_no_gt"])
def test_two_processes_have_the_losses_of_one_with_all_images(name, which, monkeypatch):
    case = case_named(f"dense_heads/{name}", which)
    inputs = arguments(case["inputs"])
    features, samples = inputs["x"], inputs["batch_data_samples"]
    head = MODELS.build(case["config"]).eval()
    load_weights(head, case)
    together = head.loss(features, samples)

    def losses_of(rank):
        one = slice(rank, rank + 1)
        return head.loss([level[one] for level in features], samples[one])

    assert_mean_of_both(losses_of_two_processes(monkeypatch, losses_of), together, rtol=1e-4, atol=1e-5)
