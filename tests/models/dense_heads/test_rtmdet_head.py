"""RTMDet: what its levels share, scores by quality, other assigners, what is refused."""

import pytest
import torch
from no_sync import NoSync
from reference import arguments, case_named, load_weights

from detkit.models import RTMDetHead, RTMDetSepBNHead
from detkit.models.dense_heads.targets.point_targets import PointTargets
from detkit.registry import MODELS


def test_levels_share_convolutions_and_not_norms():
    head = RTMDetSepBNHead(2, 8, feat_channels=8, stacked_convs=1)
    assert head.cls_convs[2][0].conv is head.cls_convs[0][0].conv
    assert head.reg_convs[1][0].conv is head.reg_convs[0][0].conv
    assert head.cls_convs[1][0].bn is not head.cls_convs[0][0].bn
    assert "cls_convs.2.0.conv.weight" in head.state_dict()
    own = RTMDetSepBNHead(2, 8, feat_channels=8, stacked_convs=1, share_conv=False, use_depthwise=True)
    assert own.cls_convs[1][0].depthwise_conv is not own.cls_convs[0][0].depthwise_conv


def test_depthwise_convolutions_are_not_shared():
    with pytest.raises(ValueError, match="use_depthwise needs share_conv=False"):
        RTMDetSepBNHead(2, 8, use_depthwise=True)


@pytest.mark.parametrize("with_objectness", [True, False])
@pytest.mark.parametrize("kind", [RTMDetHead, RTMDetSepBNHead])
def test_it_starts_with_rare_objects(kind, with_objectness):
    head = kind(2, 32, feat_channels=32, stacked_convs=1, with_objectness=with_objectness)
    head.init_weights()
    scores, _ = head([torch.zeros(1, 32, 2, 2)] * 3)
    for level in scores:
        torch.testing.assert_close(level.sigmoid().mean(), torch.tensor(0.01), rtol=0.1, atol=0)


def test_losses_by_quality():
    """Boxes weigh by their quality, and both losses are divided by its sum."""
    head = RTMDetHead(2, 32, feat_channels=32, stacked_convs=0, train_cfg={})
    points = torch.tensor([[0.0, 0, 8, 8], [8, 0, 8, 8], [16, 0, 8, 8]])

    def losses(qualities):
        targets = PointTargets(
            labels=torch.tensor([[0, 1, 2]]),
            label_weights=torch.ones(1, 3),
            bboxes=torch.tensor([[[-4.0, -4, 4, 4], [4, -4, 12, 4], [0, 0, 1, 1]]]),
            positive=torch.tensor([[True, True, False]]),
            overlaps=torch.tensor([qualities]),
        )
        # The first box is right, the second twice as large: a GIoU of 1/2, and the weight of the loss is 2.
        distances = torch.tensor([[[4.0, 4, 4, 4], [4, 4, 12, 4], [torch.inf] * 4]])
        return head._losses(torch.zeros(1, 3, 2), distances, points, targets)

    torch.testing.assert_close(losses([1.0, 1.0, 0.0])["loss_bbox"], torch.tensor(2 * 0.5 / 2))
    torch.testing.assert_close(losses([3.0, 1.0, 0.0])["loss_bbox"], torch.tensor(2 * 0.5 / 4))
    # Below one, the sum counts as one.
    torch.testing.assert_close(losses([0.1, 0.2, 0.0])["loss_bbox"], torch.tensor(2 * 0.5 * 0.2))


@pytest.mark.parametrize("name", ["SimOTAAssigner", "ATSSAssigner", "FCOSAssigner"])
def test_other_assigners_fit(name):
    case = case_named("dense_heads/RTMDetHead", "loss")
    assigner = {"type": name, **({"regress_ranges": [(-1, 32), (32, 64), (64, 1e8)]} if name[0] == "F" else {})}
    if name == "ATSSAssigner":
        assigner["topk"] = 9
    head = MODELS.build({**case["config"], "train_cfg": {"assigner": assigner}})
    load_weights(head, case)
    inputs = arguments(case["inputs"])
    with NoSync():
        losses = head.loss(inputs["x"], inputs["batch_data_samples"])
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"RTMDetHead: train_cfg\.assigner: UniformAssigner needs decoder_priors"):
        RTMDetHead(
            2, 32, train_cfg={"assigner": {"type": "UniformAssigner", "pos_ignore_thr": 0.1, "neg_ignore_thr": 0.7}}
        )
    with pytest.raises(ValueError, match="RTMDetSepBNHead: num_classes must be at least 1, got 0"):
        RTMDetSepBNHead(0, 8)
