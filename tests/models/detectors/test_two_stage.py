"""Two-stage detectors: the second stage on given proposals, any dense head as the first, wrong input."""

import copy

import pytest
import torch
from mmengine.structures import InstanceData
from shipped import CONFIGS

from detkit.config import load
from detkit.registry import MODELS
from detkit.structures import DetDataSample

SLIM = CONFIGS / "faster_rcnn/faster-rcnn_r18_fpn_shapes.py"


def slim(**changes):
    cfg = load(SLIM).model.to_dict()
    cfg.update(changes)
    return cfg


def batch():
    samples = []
    for count in (2, 0):
        facts = {"img_shape": (64, 64), "ori_shape": (64, 64), "pad_shape": (64, 64), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo=facts)
        boxes = torch.tensor([[4.0, 4, 24, 24], [30, 30, 60, 60]])[:count]
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 3])[:count])
        sample.proposals = InstanceData(bboxes=torch.tensor([[5.0, 5, 25, 25], [0, 40, 20, 60]]))
        samples.append(sample)
    torch.manual_seed(0)
    return torch.rand(2, 3, 64, 64), samples


def test_proposals_of_the_data_replace_the_first_stage():
    cfg = slim(type="FastRCNN")
    del cfg["rpn_head"]
    cfg["train_cfg"] = {"rcnn": cfg["train_cfg"]["rcnn"]}
    cfg["test_cfg"] = {"rcnn": {**cfg["test_cfg"]["rcnn"], "score_thr": 0.0}}
    model = MODELS.build(cfg)
    images, samples = batch()
    losses = model.loss(images, samples)
    assert set(losses) == {"loss_cls", "loss_bbox", "acc"}
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert len(model.eval().predict(images, samples)[0].pred_instances) > 0
    del samples[1].proposals
    with pytest.raises(ValueError, match="each data sample needs proposals"):
        model.loss(images, samples)


def with_retina(**changes):
    """The slim detector, with a RetinaHead as its first stage."""
    cfg = slim()
    retina = load(CONFIGS / "retinanet/retinanet_r18_fpn_shapes.py").model.to_dict()
    head = retina["bbox_head"]
    head["anchor_generator"]["strides"] = [4, 8, 16]
    cfg["rpn_head"] = {**head, "num_classes": 1, **changes}
    cfg["train_cfg"]["rpn"] = retina["train_cfg"]
    return cfg


def test_any_dense_head_of_one_class_may_propose():
    cfg = with_retina()
    del cfg["train_cfg"]["rpn_proposal"]
    model = MODELS.build(cfg)
    images, samples = batch()
    before = samples[0].gt_instances.labels.clone()
    losses = model.loss(images, samples)
    assert {"rpn_loss_cls", "rpn_loss_bbox", "loss_cls", "loss_bbox"} <= set(losses)
    assert samples[0].gt_instances.labels.equal(before)
    cfg["rpn_head"]["num_classes"] = 5
    with pytest.raises(ValueError, match=r"rpn_head\.num_classes must be 1, got 5"):
        MODELS.build(cfg)


def proposals_of_a_step(model, monkeypatch):
    """How many proposals of each image the second stage learns from."""
    seen = []
    loss = model.roi_head.loss
    monkeypatch.setattr(model.roi_head, "loss", lambda x, found, samples: seen.extend(found) or loss(x, found, samples))
    model.loss(*batch())
    return [len(one) for one in seen]


def test_any_dense_head_proposes_by_the_thresholds_of_training(monkeypatch):
    cfg = with_retina()
    cfg["train_cfg"]["rpn_proposal"] = {"nms_pre": 30, "max_per_img": 7}
    cfg["test_cfg"]["rpn"] = {"nms_pre": 30, "max_per_img": 5}
    model = MODELS.build(cfg)
    assert proposals_of_a_step(model, monkeypatch) == [7, 7]
    images, samples = batch()
    features = model.eval().extract_feat(images)
    assert [len(one) for one in model._proposals(features, samples)] == [5, 5]
    del cfg["train_cfg"]["rpn_proposal"]
    assert proposals_of_a_step(MODELS.build(cfg), monkeypatch) == [5, 5]


def test_a_dense_head_that_runs_twice_counts_a_step_once():
    model = MODELS.build(with_retina(norm_cfg={"type": "BN"})).train()
    model.loss(*batch())
    counts = [value for name, value in model.rpn_head.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts
    assert all(count == 3 for count in counts)  # levels


def test_thresholds_of_proposals_that_nothing_reads_are_refused():
    cfg = slim()
    cfg["rpn_head"] = {"type": "CenterNetHead", "in_channels": 64, "feat_channels": 8}
    cfg["train_cfg"]["rpn"] = cfg["test_cfg"]["rpn"] = None
    with pytest.raises(ValueError, match=r"FasterRCNN: train_cfg\.rpn_proposal is not read by CenterNetHead; leave it"):
        MODELS.build(cfg)


def test_annotations_stay_as_they_are():
    model = MODELS.build(slim())
    images, samples = batch()
    before = copy.deepcopy(samples)
    objects = [sample.gt_instances for sample in samples]
    model.loss(images, samples)
    for sample, same, other in zip(samples, objects, before, strict=True):
        assert sample.gt_instances is same
        assert sample.gt_instances.labels.equal(other.gt_instances.labels)
        assert sample.gt_instances.bboxes.equal(other.gt_instances.bboxes)


def test_raw_outputs():
    model = MODELS.build(slim()).eval()
    scores, boxes = model(batch()[0])
    assert scores.shape[1] == 6
    assert boxes.shape == (len(scores), 4)


def test_wrong_configs():
    with pytest.raises(ValueError, match="FasterRCNN: roi_head is missing"):
        MODELS.build(slim(roi_head=None))
    with pytest.raises(TypeError, match="roi_head: a config dict with a 'type' was expected, got 'StandardRoIHead'"):
        MODELS.build(slim(roi_head="StandardRoIHead"))
    cfg = slim()
    cfg["train_cfg"]["rcn"] = cfg["train_cfg"].pop("rcnn")
    with pytest.raises(KeyError, match=r"train_cfg.rcn: unknown key; did you mean 'rcnn'"):
        MODELS.build(cfg)
    cfg = slim()
    cfg["train_cfg"]["rcnn"]["posweight"] = 1
    with pytest.raises(KeyError, match=r"train_cfg.posweight: unknown key; did you mean 'pos_weight'"):
        MODELS.build(cfg)
    cfg = slim()
    cfg["roi_head"]["train_cfg"] = {}
    with pytest.raises(ValueError, match=r"roi_head\.train_cfg is not read"):
        MODELS.build(cfg)
    cfg = slim()
    del cfg["train_cfg"]["rcnn"]["sampler"]
    with pytest.raises(ValueError, match="sampler is missing"):
        MODELS.build(cfg)
    model = MODELS.build(slim(train_cfg=None))
    with pytest.raises(ValueError, match="training needs train_cfg"):
        model.loss(*batch())
