"""TridentNet: branches of a backbone, as images of a detector."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync

from detkit.models import ResNet, TridentFasterRCNN, TridentResNet
from detkit.structures import DetDataSample

BRANCHES = {"num_branch": 3, "test_branch_idx": -1, "trident_dilations": (1, 2, 3)}
SMALL = {"base_channels": 8, "strides": (1, 2, 1)}


def backbone(**changes):
    torch.manual_seed(0)
    return TridentResNet(**{"depth": 50, **BRANCHES, **SMALL, "zero_init_residual": False, **changes})


@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_each_branch_is_a_resnet_of_its_dilation(style):
    trident = backbone(style=style).eval()
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        (found,) = trident(images)
        for branch, dilation in enumerate((1, 2, 3)):
            plain = ResNet(50, num_stages=3, dilations=(1, 1, dilation), out_indices=(2,), style=style, **SMALL).eval()
            plain.load_state_dict(trident.state_dict(), strict=True)
            torch.testing.assert_close(found[2 * branch : 2 * branch + 2], plain(images)[0])
            one = backbone(style=style, test_branch_idx=branch).eval()
            torch.testing.assert_close(one(images)[0], plain(images)[0])


def test_training_runs_all_branches():
    one = backbone(test_branch_idx=1, with_cp=True)
    images = torch.rand(2, 3, 32, 32)
    assert one.eval()(images)[0].shape[0] == 2
    found = one.train()(images)[0]
    assert found.shape[0] == 6
    found.sum().backward()
    assert one.layer3[0].conv2.weight.grad.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 18}, "depth must be 50, 101 or 152"),
        ({"num_stages": 4}, "num_stages must be 3"),
        ({"num_branch": 2}, r"2 branches, but trident_dilations \(1, 2, 3\)"),
        ({"test_branch_idx": 3}, "test_branch_idx must be -1 to 2, got 3"),
        ({"frozen_stages": 3}, "frozen_stages must be -1 to 2, got 3"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"TridentResNet: {message}"):
        backbone(**changes)


def detector(branch=-1, **of_head):
    torch.manual_seed(0)
    nms = {"type": "nms", "iou_threshold": 0.5}
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.3}
    sampler = {"type": "RandomSampler", "num": 8, "pos_fraction": 0.5, "add_gt_as_proposals": False}
    anchors = {"type": "AnchorGenerator", "scales": [2, 4], "ratios": [1.0], "strides": [8]}
    align = {"type": "RoIAlign", "output_size": 2, "sampling_ratio": 2}
    extractor = {"type": "SingleRoIExtractor", "roi_layer": align, "out_channels": 128, "featmap_strides": [8]}
    proposals = {"nms_pre": 20, "max_per_img": 6, "nms": nms}
    return TridentFasterRCNN(
        backbone={"type": "TridentResNet", "depth": 50, **BRANCHES, **SMALL, "test_branch_idx": branch},
        rpn_head={"type": "RPNHead", "in_channels": 128, "feat_channels": 8, "anchor_generator": anchors},
        roi_head={
            "type": "TridentRoIHead",
            "num_branch": 3,
            "test_branch_idx": branch,
            "bbox_roi_extractor": extractor,
            "bbox_head": {"type": "BBoxHead", "in_channels": 128, "roi_feat_size": 2, "num_classes": 3},
            **of_head,
        },
        train_cfg={
            "rpn": {"assigner": assigner, "sampler": sampler},
            "rpn_proposal": proposals,
            "rcnn": {"assigner": assigner, "sampler": {**sampler, "add_gt_as_proposals": True}},
        },
        test_cfg={"rpn": proposals, "rcnn": {"score_thr": 0.0, "nms": nms, "max_per_img": 7}},
    )


def samples_of(*counts):
    samples = []
    for count in counts:
        sample = DetDataSample(metainfo={"img_shape": (32, 48), "pad_shape": (32, 48), "scale_factor": (2.0, 2.0)})
        boxes = torch.tensor([[4.0, 4, 20, 24], [20.0, 8, 44, 30]])[:count]
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(count))
        samples.append(sample)
    return samples


@pytest.mark.parametrize("counts", [(2, 1), (1, 0), (0, 0)])
def test_a_step_learns_from_all_branches(counts):
    model = detector().train()
    losses = model.loss(torch.rand(2, 3, 32, 48), samples_of(*counts))
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_detections_of_all_branches_suppress_each_other_within_their_image():
    model, samples = detector().eval(), samples_of(1, 1)
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        together = model.predict(images, samples)
        assert together is samples
        alone = [model.predict(images[row : row + 1], samples_of(1))[0].pred_instances for row in (0, 1)]
        for sample, one in zip(together, alone, strict=True):
            found = sample.pred_instances
            assert 0 < len(found) <= 7
            torch.testing.assert_close(found.scores, one.scores)
            torch.testing.assert_close(found.bboxes, one.bboxes)
        branches = []
        for branch in range(3):
            single = detector(branch).eval()
            single.load_state_dict(model.state_dict())
            branches.append(single.predict(images[:1], samples_of(1))[0].pred_instances)
    rows = torch.cat([one.bboxes for one in branches])
    for box in alone[0].bboxes:
        assert torch.isclose(rows, box, atol=1e-4).all(dim=1).any(), "each detection is of a branch"
    assert alone[0].scores.max() == max(one.scores.max() for one in branches)


def test_raw_outputs_are_of_all_branches_and_heads_must_know_them():
    model = detector().eval()
    with torch.no_grad():
        logits, _ = model(torch.rand(2, 3, 32, 48))
    assert len(logits) % 6 == 0
    with pytest.raises(ValueError, match=r"num_branch of backbone \(3\) and of roi_head \(2\) must be the same"):
        detector(num_branch=2)
    with NoSync(), torch.no_grad():
        model.train().extract_feat(torch.rand(1, 3, 32, 48))
