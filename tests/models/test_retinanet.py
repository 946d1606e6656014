"""RetinaNet as a whole: keys, synchronisation, batches, empty images, and that it learns."""

import copy

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.events import EventStorage
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

CONFIG = {
    "type": "RetinaNet",
    "data_preprocessor": {
        "type": "DetDataPreprocessor",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "pad_size_divisor": 32,
    },
    "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_eval": False},
    "neck": {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 16, "start_level": 1, "num_outs": 3},
    "bbox_head": {
        "type": "RetinaHead",
        "num_classes": 3,
        "in_channels": 16,
        "feat_channels": 16,
        "stacked_convs": 1,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 2,
            "scales_per_octave": 2,
            "ratios": [1.0],
            "strides": [8, 16, 32],
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
        "loss_cls": {"type": "FocalLoss"},
        "loss_bbox": {"type": "L1Loss"},
    },
    "train_cfg": {"assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}},
    "test_cfg": {
        "nms_pre": 1000,
        "min_bbox_size": 0,
        "score_thr": 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.5},
        "max_per_img": 100,
    },
}


def sample(boxes, labels, shape=(64, 64), ignored=()):
    found = DetDataSample(metainfo={"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)})
    found.gt_instances = InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.tensor(labels).long())
    found.ignored_instances = InstanceData(bboxes=torch.tensor(ignored).view(-1, 4), labels=torch.zeros(len(ignored)))
    return found


def batch(model, samples, training=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, *s.metainfo["img_shape"]), generator=generator).byte() for s in samples]
    data = model.data_preprocessor({"inputs": images, "data_samples": copy.deepcopy(samples)}, training)
    return data["inputs"], data["data_samples"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = MODELS.build(copy.deepcopy(CONFIG))
    built.init_weights()
    return built


SAMPLES = [
    sample([[4.0, 4.0, 30.0, 34.0], [20.0, 10.0, 60.0, 50.0]], [0, 2], ignored=[[0.0, 0.0, 20.0, 20.0]]),
    sample([[10.0, 12.0, 40.0, 40.0]], [1], shape=(48, 60)),
    sample([], []),
]


def test_a_training_step_never_waits_for_the_device(model):
    inputs, samples = batch(model, SAMPLES)
    model.bbox_head.train_cfg.assigner.ignore_iof_thr = 0.5
    with NoSync():
        losses = model.loss(inputs, samples)
        (losses["loss_cls"] + losses["loss_bbox"]).backward()


def test_a_run_hears_of_the_number_of_positives(model):
    inputs, samples = batch(model, SAMPLES[:1] * 2)
    with EventStorage() as storage, NoSync():
        model.loss(inputs, samples)
        model.eval()
        model.loss(inputs, samples)
    assert storage.count_samples("num_pos_anchors", 1) == 1
    # The image's objects take its anchors, of which a batch of it twice has twice as many.
    anchors = model.bbox_head.prior_generator.grid_priors([(8, 8), (4, 4), (2, 2)])
    assigner = model.bbox_head.train_cfg.assigner
    assigned = assigner.assign_batch(torch.cat(anchors), GroundTruth.from_samples(samples[:1]))
    assert storage.latest()["num_pos_anchors"][0] == (assigned.gt_inds > 0).sum() > 0


def test_a_training_step_runs_without_any_values(model):
    """On the meta device a tensor has no values to look at, so nothing can depend on one."""
    inputs, samples = batch(model, SAMPLES)
    model.to("meta")
    losses = model.loss(inputs.to("meta"), [s.to("meta") for s in samples])
    sum(losses.values()).backward()
    assert losses["loss_cls"].shape == ()


@pytest.mark.parametrize("operation", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero()])
def test_the_mode_itself_fails_on_what_waits(operation):
    with NoSync(), pytest.raises(AssertionError, match="waits for the device"):
        operation(torch.ones(3))


@pytest.mark.parametrize("chosen", [[0, 1, 2], [2], [2, 2], [0]])
def test_losses_are_finite_and_reach_every_parameter(model, chosen):
    inputs, samples = batch(model, [SAMPLES[i] for i in chosen])
    losses = model.loss(inputs, samples)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if chosen == [2]:
        assert losses["loss_bbox"] == 0


def test_an_image_in_a_batch_is_found_as_alone(model):
    model.eval()
    model.bbox_head.retina_cls.bias.data.fill_(-2)
    same = [sample([], [], shape=(64, 64)) for _ in range(3)]
    inputs, samples = batch(model, same, training=False)
    with torch.no_grad():
        together = [s.pred_instances for s in model.predict(inputs, samples)]
        alone = [model.predict(inputs[i : i + 1], samples[i : i + 1])[0].pred_instances for i in range(3)]
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first.bboxes, second.bboxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(first.scores, second.scores)
        assert torch.equal(first.labels, second.labels)


def test_boxes_return_to_the_original_frame(model):
    model.eval()
    model.bbox_head.retina_cls.bias.data.fill_(-2)
    one = sample([], [], shape=(64, 64))
    one.set_metainfo({"ori_shape": (32, 128), "scale_factor": (0.5, 2.0)})
    inputs, samples = batch(model, [one], training=False)
    with torch.no_grad():
        raw = model.predict(inputs, samples, rescale=False)[0].pred_instances.bboxes.clone()
        back = model.predict(inputs, samples, rescale=True)[0].pred_instances.bboxes
    assert len(raw) > 0
    torch.testing.assert_close(back, raw * torch.tensor([2.0, 0.5, 2.0, 0.5]))


def test_images_that_nothing_resized_need_no_scale_factor(model):
    model.eval()
    model.bbox_head.retina_cls.bias.data.fill_(-2)
    inputs, samples = batch(model, [sample([], [])], training=False)
    with torch.no_grad():
        expected = model.predict(inputs, samples)[0].pred_instances.bboxes.clone()
        del samples[0].scale_factor
        found = model.predict(inputs, samples)[0].pred_instances.bboxes
    assert len(found) > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_predictions_that_are_not_finite_raise_nothing(model, value):
    """A network that went astray is evaluated like any other; what is found lies inside the image."""
    model.eval()
    model.bbox_head.retina_cls.bias.data[::2] = value
    model.bbox_head.retina_reg.bias.data[::3] = value
    inputs, samples = batch(model, [sample([], [])], training=False)
    with torch.no_grad():
        found = model.predict(inputs, samples)[0].pred_instances
    boxes = found.bboxes[torch.isfinite(found.bboxes).all(dim=1)]
    assert (boxes >= 0).all()
    assert (boxes <= 64).all()


def test_it_learns_one_image(model):
    """Sixty steps on two rectangles: both are found, first, and in their class."""
    boxes, labels = [[8.0, 8.0, 30.0, 30.0], [30.0, 28.0, 62.0, 60.0]], [0, 2]
    one = sample(boxes, labels)
    image = torch.full((3, 64, 64), 40, dtype=torch.uint8)
    image[0, 8:30, 8:30] = 255
    image[2, 28:60, 30:62] = 255
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(60):
        data = model.data_preprocessor({"inputs": [image], "data_samples": [one]}, True)
        losses = model.loss(data["inputs"], data["data_samples"])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    # One image has no population statistics, so the norms keep those of the batch.
    with torch.no_grad():
        found = model.predict(data["inputs"], data["data_samples"])[0].pred_instances[:2]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == labels
    torch.testing.assert_close(found.bboxes[order], torch.tensor(boxes), rtol=0, atol=3.0)


@pytest.mark.parametrize(
    "assigner",
    [
        {"type": "ATSSAssigner", "topk": 9},
        {"type": "CenterRegionAssigner", "pos_scale": 0.3, "neg_scale": 0.6},
        {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "perm_repeat_gt_cfg": {"iou_thr": 0.9}},
    ],
    ids=lambda cfg: cfg["type"],
)
def test_another_assigner_by_config(assigner):
    config = copy.deepcopy(CONFIG)
    config["train_cfg"]["assigner"] = assigner
    model = MODELS.build(config)
    model.init_weights()
    inputs, samples = batch(model, SAMPLES)
    with NoSync():
        losses = model.loss(inputs, samples)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_bbox"] > 0


def test_an_assigner_of_points_is_refused_at_once():
    config = copy.deepcopy(CONFIG)
    config["train_cfg"]["assigner"] = {"type": "SimOTAAssigner"}
    with pytest.raises(ValueError, match=r"train_cfg\.assigner: SimOTAAssigner assigns points with strides"):
        MODELS.build(config)


def test_unknown_mode_and_missing_samples(model):
    inputs, _ = batch(model, SAMPLES)
    with pytest.raises(ValueError, match="mode 'test' is not one of 'loss', 'predict', 'tensor'"):
        model(inputs, None, mode="test")
    with pytest.raises(ValueError, match="mode 'predict' needs data_samples"):
        model(inputs, None, mode="predict")
