"""Guided Anchoring: places left out, shapes beyond all bounds, borders, and what a config may say."""

import pytest
import torch
from no_sync import NoSync
from reference import arguments, case_named, load_weights

from detkit.models.dense_heads.prediction.postprocess import Candidates, DenseTestCfg
from detkit.models.dense_heads.prediction.proposals import propose
from detkit.registry import MODELS


def reference_head(name, **changes):
    """The head of the reference's first loss case, changed, with its weights, features and samples."""
    case = case_named(f"dense_heads/{name}", "loss")
    head = MODELS.build({**case["config"], **changes})
    load_weights(head, case)
    inputs = arguments(case["inputs"])
    return head, inputs["x"], inputs["batch_data_samples"]


NAMES = ["GARetinaHead", "GARPNHead"]


def test_a_location_learns_to_be_the_middle_of_an_object():
    head, features, samples = reference_head("GARetinaHead")
    with torch.no_grad():
        head.conv_loc.weight.zero_()
        losses = []
        for bias in (-4.0, 4.0):
            head.conv_loc.bias.fill_(bias)
            losses.append(head.loss(features, samples)["loss_loc"])
    assert losses[0] < losses[1], "most places are in the middle of nothing"
    # A push along the gradient raises the probability in the middle of objects, and lowers it elsewhere.
    maps = head._maps(features)
    targets = head.targets(maps, samples)
    (slope,) = torch.autograd.grad(head.location_and_shape_losses(maps, targets)[0], maps.loc_preds[:1])
    cells = slope[0].numel()
    central, counted = targets.central[:, :cells], targets.loc_weights[:, :cells] > 0
    slope = slope.flatten(1)
    assert (slope[central & counted] < 0).all()
    assert central.any()
    assert (slope[~central & counted] > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_places_below_the_threshold_are_left_out_in_prediction_only(name):
    head, features, samples = reference_head(name, loc_filter_thr=0.5)
    with torch.no_grad():
        head.conv_loc.weight.zero_()
        head.conv_loc.bias.fill_(-0.1)
        assert all((level != 0).any() for level in head.train()(features).cls_scores)
        head.eval()
        maps = head(features)
        assert not any(level.any() for level in (*maps.cls_scores, *maps.bbox_preds))
        assert all(level.any() for level in maps.shape_preds)
        assert [len(found) for found in head.predict(features, samples)] == [0, 0]
        head.conv_loc.bias.fill_(0.1)
        assert all(len(found) > 0 for found in head.predict(features, samples))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", [-1000.0, 1000.0, float("inf")])
def test_shapes_beyond_all_bounds_have_finite_losses_and_gradients(name, bias):
    head, features, samples = reference_head(name)
    with torch.no_grad():
        head.conv_shape.bias.fill_(bias)
        # An infinite shape would look infinitely far away.
        for module in head.modules():
            if hasattr(module, "conv_offset"):
                module.conv_offset.weight.zero_()
                module.forward = lambda x, shape, module=module: module.conv_adaption(
                    x, module.conv_offset(torch.zeros_like(shape))
                ).relu()
    for sample in samples[1:]:
        sample.gt_instances = sample.gt_instances[:0]
    losses = head.loss(features, samples)
    sum(loss for key, loss in losses.items() if "loss" in key).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_border_leaves_out_squares_and_anchors_without_waiting(name):
    head, features, samples = reference_head(name)
    config = case_named(f"dense_heads/{name}", "loss")["config"]["train_cfg"]
    inside, *_ = reference_head(name, train_cfg={**config, "allowed_border": 0})
    with NoSync():
        maps = head._maps(features)
        free, bound = (one.targets(maps, samples, one_class=name == "GARPNHead") for one in (head, inside))
    taking_part = bound.of_anchors.label_weights > 0
    outside = (bound.anchors[..., :2] < 0).any(dim=-1) | (bound.anchors[..., 2] >= 96)
    assert taking_part.any()
    assert not (taking_part & outside).any()
    assert free.of_anchors.label_weights.sum() > taking_part.sum()


def test_proposals_of_a_level_are_at_most_nms_post():
    """Two levels of three boxes apart from each other; the first level scores more."""
    boxes = torch.tensor([[20.0 * i, 0, 20 * i + 10, 10] for i in range(6)]).expand(2, 6, 4)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).expand(2, 6)
    levels = torch.tensor([0, 0, 0, 1, 1, 1]).expand(2, 6)
    kept = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
    nms = {"type": "nms", "iou_threshold": 0.7}
    found = {
        limit: propose(Candidates(scores, levels, boxes, kept), DenseTestCfg(nms_post=limit, max_per_img=5, nms=nms))
        for limit in (None, -1, 2, 1)
    }
    expected = {
        None: [[0.9, 0.8, 0.7, 0.6, 0.5], [0.8, 0.7, 0.6, 0.5]],
        2: [[0.9, 0.8, 0.6, 0.5], [0.8, 0.7, 0.6, 0.5]],
        1: [[0.9, 0.6], [0.8, 0.6]],
    }
    expected[-1] = expected[None]
    for limit, proposals in found.items():
        for wanted, own, valid in zip(expected[limit], proposals.scores, proposals.valid, strict=True):
            assert own[valid].tolist() == pytest.approx(wanted)
    assert {p.boxes.shape for p in found.values()} == {(2, 5, 4)}


def test_proposals_to_learn_from_are_of_all_places_and_those_of_a_prediction_are_not():
    head, features, samples = reference_head("GARPNHead", loc_filter_thr=0.5)
    with torch.no_grad():
        head.conv_loc.weight.zero_()
        head.conv_loc.bias.fill_(-0.1)
        few = DenseTestCfg(nms_pre=10, max_per_img=7, nms={"type": "nms", "iou_threshold": 0.7}, min_bbox_size=0)
        losses, proposals = head.train().loss_and_predict(features, samples, few)
        assert proposals.valid.shape == (2, 7)
        assert proposals.valid.any(dim=1).all()
        assert losses.keys() == head.loss(features, samples).keys()
        own = head.loss_and_predict(features, samples)[1]
        assert own.valid.shape == (2, head.test_cfg.max_per_img)
        assert not head.eval().loss_and_predict(features, samples)[1].valid.any()
    with pytest.raises(KeyError, match="nms_post"):
        MODELS.build({"type": "RPNHead", "in_channels": 8, "test_cfg": {"nms_post": 5}})


def test_to_a_proposal_network_every_object_is_of_its_one_class():
    head, features, samples = reference_head("GARPNHead")
    expected = head.loss(features, samples)
    for sample in samples:
        sample.gt_instances.labels = sample.gt_instances.labels + 3
    found = head.loss(features, samples)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
