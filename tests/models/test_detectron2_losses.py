"""Losses against numbers that Detectron2 gave for the same inputs (``tests/data/parity/detectron2_fixtures.json``).

Those of its whole R-CNN with random weights are in ``test_detectron2_rcnn.py``.
"""

import json
from pathlib import Path

import pytest
import torch
from no_sync import NoSync

from detkit.losses import CIoULoss, CrossEntropyLoss, DIoULoss, FocalLoss, GIoULoss, L1Loss, SmoothL1Loss
from detkit.models.dense_heads import RetinaHead
from detkit.models.dense_heads.losses.anchor_loss import anchor_losses
from detkit.models.dense_heads.losses.loss_normalizer import EMANormalizer
from detkit.models.dense_heads.losses.rpn_loss import rpn_losses
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets
from detkit.models.roi_heads.fast_rcnn_loss import fast_rcnn_losses, federated_classes
from detkit.ops import nms
from detkit.registry import MODELS
from detkit.task_modules import DeltaXYWHBBoxCoder, DeltaXYWHTRBBoxCoder

FIXTURES = json.loads((Path(__file__).parents[1] / "data" / "parity" / "detectron2_fixtures.json").read_text())


def matched(fixture, num_classes, coder):
    """Targets of what Detectron2 matched: labels -1 are ignored, the background is ``num_classes``."""
    anchors = torch.cat([torch.tensor(level) for level in fixture["anchors"]])
    labels, boxes = torch.tensor(fixture["gt_labels"]), torch.tensor(fixture["gt_boxes"])
    if "batch_size_per_image" in fixture:  # a proposal network says 1 for an object, 0 for background
        labels = torch.where(labels < 0, labels, 1 - labels)
    positive = (labels >= 0) & (labels < num_classes)
    own = torch.where(positive.unsqueeze(-1), boxes, anchors)
    targets = own if coder is None else coder.encode(anchors.expand_as(own), own)
    weights = (labels >= 0).float()
    counted = weights.sum()
    return anchors, AnchorTargets(
        torch.where(labels < 0, num_classes, labels),
        weights,
        torch.where(positive.unsqueeze(-1), targets, 0.0),
        positive.float(),
        counted,
    )


# Detectron2's CIoU counts the aspect ratio of all pairs, and its epsilon is 1e-7.
BOX_LOSSES = {
    "expected_smooth_l1": (L1Loss(), False),
    "expected_smooth_l1_beta0.11": (SmoothL1Loss(beta=0.11), False),
    "expected_giou": (GIoULoss(eps=1e-7), True),
    "expected_diou": (DIoULoss(eps=1e-7), True),
    "expected_ciou": (CIoULoss(eps=1e-7, aspect_iou_thr=None), True),
}


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_retinanet_in_three_steps(name):
    """The normaliser starts at 100 and moves a tenth of the way to 3 positives at each step."""
    fixture, coder, normalizer = FIXTURES["retinanet"], DeltaXYWHBBoxCoder(), EMANormalizer(0.9, 100)
    loss_bbox, on_boxes = BOX_LOSSES[name]
    anchors, targets = matched(fixture, fixture["num_classes"], None if on_boxes else coder)
    logits, deltas = (
        torch.cat([torch.tensor(level) for level in fixture[key]], dim=1).requires_grad_()
        for key in ("pred_logits", "pred_anchor_deltas")
    )
    for expected in fixture[name]:
        with NoSync():
            divisor = normalizer(targets.bbox_weights.sum())
            parts = FocalLoss(gamma=2.0, alpha=0.25), loss_bbox, divisor, coder if on_boxes else None
            losses = anchor_losses(logits, deltas, anchors, targets, *parts)
            sum(losses).backward()
        assert divisor.item() == pytest.approx(expected["normalizer"], rel=1e-6)
        assert losses[0].item() == pytest.approx(expected["loss_cls"], rel=1e-5)
        assert losses[1].item() == pytest.approx(expected["loss_box_reg"], rel=1e-5)
    assert targets.bbox_weights.sum() / len(logits) == fixture["logged"]["num_pos_anchors"]


def test_retinanet_without_positives():
    fixture, normalizer = dict(FIXTURES["retinanet"]), EMANormalizer(0.9, 100)
    expected = fixture["expected_no_positives"]
    anchors, targets = matched({**fixture, "gt_labels": expected["gt_labels"]}, 3, DeltaXYWHBBoxCoder())
    logits, deltas = (
        torch.cat([torch.tensor(level) for level in fixture[key]], dim=1).requires_grad_()
        for key in ("pred_logits", "pred_anchor_deltas")
    )
    divisor = normalizer(targets.bbox_weights.sum())
    losses = anchor_losses(logits, deltas, anchors, targets, FocalLoss(), L1Loss(), divisor)
    sum(losses).backward()
    assert divisor.item() == pytest.approx(expected["normalizer"], rel=1e-6)
    assert losses[0].item() == pytest.approx(expected["loss_cls"], rel=1e-5)
    assert losses[1].item() == expected["loss_box_reg"] == 0
    assert not deltas.grad.any()


def test_the_normalizer_is_a_switch_of_the_head():
    config = {"type": "RetinaHead", "num_classes": 2, "in_channels": 4, "feat_channels": 4}
    plain = MODELS.build(config)
    moving = MODELS.build({**config, "loss_normalizer": {"type": "EMA", "momentum": 0.5, "init": 8}})
    assert set(moving.state_dict()) - set(plain.state_dict()) == {"loss_normalizer.value"}
    targets = AnchorTargets(*torch.zeros(3, 1, 6), torch.tensor([[1.0, 1.0, 1.0, 1.0, 0, 0]]), torch.tensor(9))
    assert plain._avg_factor(targets) == 9
    assert moving._avg_factor(targets) == 6
    assert moving._avg_factor(targets) == 5
    # Neither a validation nor a pass without gradients changes it, and a resumed head goes on with it.
    assert moving.eval()._avg_factor(targets) == 5
    moving.train()
    with torch.no_grad():
        assert moving._avg_factor(targets) == 5
    moving.load_state_dict(moving.state_dict() | {"loss_normalizer.value": torch.tensor(2.0)})
    assert moving._avg_factor(targets) == 3
    for wrong, error, message in (
        ("num_poss", ValueError, "loss_normalizer must be 'num_pos' or a module"),
        ({"type": "EMA", "momentun": 0.9}, TypeError, "did you mean 'momentum'"),
        ({"type": "EMA", "momentum": 1.5}, ValueError, "momentum must be >= 0 and <= 1, got 1.5"),
        ({"type": "EMA", "init": 0}, ValueError, "init must be > 0, got 0"),
    ):
        with pytest.raises(error, match=message):
            RetinaHead(num_classes=2, in_channels=4, loss_normalizer=wrong)


@pytest.mark.parametrize("name", ["rpn", "rpn_5conv"])
def test_proposal_network(name):
    """All 30 anchors of both images were sampled, of 256 that were wanted: Detectron2 divides by 512."""
    fixture, coder = FIXTURES[name], DeltaXYWHBBoxCoder()
    anchors, targets = matched(fixture, 1, coder)
    logits = torch.cat([torch.tensor(level) for level in fixture["pred_objectness_logits"]], dim=1).requires_grad_()
    deltas = torch.cat([torch.tensor(level) for level in fixture["pred_anchor_deltas"]], dim=1).requires_grad_()
    parts = logits, deltas, anchors, targets, CrossEntropyLoss(use_sigmoid=True), L1Loss()
    with NoSync():
        fixed = rpn_losses(*parts, avg_factor="fixed", batch_size_per_image=fixture["batch_size_per_image"])
        sampled = rpn_losses(*parts)
        (fixed["loss_rpn_cls"] + fixed["loss_rpn_bbox"]).backward()
    assert fixed["loss_rpn_cls"].item() == pytest.approx(fixture["expected"]["loss_rpn_cls"], rel=1e-5)
    assert fixed["loss_rpn_bbox"].item() == pytest.approx(fixture["expected"]["loss_rpn_loc"], rel=1e-5)
    for loss in ("loss_rpn_cls", "loss_rpn_bbox"):
        torch.testing.assert_close(sampled[loss], fixed[loss] * 512 / 60)
    for count in ("num_pos_anchors", "num_neg_anchors"):
        assert fixed[count] == fixture["logged"][f"rpn/{count}"]
        assert not fixed[count].requires_grad
    assert logits.grad.abs().sum() > 0
    assert deltas.grad.abs().sum() > 0


def test_proposals_of_the_network():
    """Decoded, clipped to 10 x 10 pixels and without near-duplicates, the first image has two, with these logits."""
    fixture = FIXTURES["rpn"]
    (anchors,), (logits,) = (torch.tensor(fixture[key]) for key in ("anchors", "pred_objectness_logits"))
    boxes = DeltaXYWHBBoxCoder().decode(anchors, torch.tensor(fixture["pred_anchor_deltas"])[0, 0], max_shape=(10, 10))
    some = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    boxes, scores = boxes[some], logits[0][some]
    _, keep = nms(boxes, scores, iou_threshold=0.7)
    expected = torch.tensor([[0.0, 0, 10, 10], [7.2702, 0, 10, 10]])
    torch.testing.assert_close(boxes[keep], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores[keep], torch.tensor([0.1596, -0.0007]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("avg_factor", "size", "message"),
    [
        ("samples", 256, "avg_factor 'samples' is not one of 'sampled' or 'fixed'; did you mean 'sampled'"),
        ("fixed", 0, "batch_size_per_image must be at least 1, got 0"),
    ],
)
def test_wrong_divisors_are_refused(avg_factor, size, message):
    with pytest.raises(ValueError, match=message):
        rpn_losses(*[None] * 6, avg_factor=avg_factor, batch_size_per_image=size)


def coder_of(fixture):
    weights = [1 / weight for weight in fixture["box_transform_weights"]]
    if len(weights) == 4:
        return DeltaXYWHBBoxCoder(target_stds=weights)
    return DeltaXYWHTRBBoxCoder(target_stds=weights, angle_version="r360", degrees=True)


@pytest.mark.parametrize("name", ["fast_rcnn", "fast_rcnn_rotated", "fast_rcnn_softmax_ce", "fast_rcnn_sigmoid_ce"])
def test_fast_rcnn(name):
    """Weights of losses may be integers; Detectron2 fails on one."""
    fixture = FIXTURES[name]
    scores, deltas = (torch.tensor(fixture[key]).requires_grad_() for key in ("scores", "proposal_deltas"))
    proposals, boxes, labels = (torch.tensor(fixture[key])[0] for key in ("proposal_boxes", "gt_boxes", "gt_classes"))
    loss_cls = CrossEntropyLoss(use_sigmoid="sigmoid" in name)
    loss_bbox = L1Loss(loss_weight=int(fixture.get("loss_weight", {}).get("loss_box_reg", 1)))
    with NoSync():
        found = fast_rcnn_losses(
            scores, deltas, proposals, boxes, labels, coder_of(fixture), loss_cls, loss_bbox, background_sigmoid=False
        )
        (found["loss_cls"] + found["loss_bbox"]).backward()
    assert found["loss_cls"].item() == pytest.approx(fixture["expected"]["loss_cls"], rel=1e-5)
    assert found["loss_bbox"].item() == pytest.approx(fixture["expected"]["loss_box_reg"], rel=1e-5)
    for key in ("cls_accuracy", "fg_cls_accuracy", "false_negative"):
        assert found[key].item() == pytest.approx(fixture["logged"][f"fast_rcnn/{key}"])
        assert not found[key].requires_grad
    # Only the deltas of the proposals' own classes learn.
    size, num_classes = len(fixture["box_transform_weights"]), fixture["num_classes"]
    reached = deltas.grad.view(len(labels), num_classes, size).any(dim=2)
    assert reached.nonzero().tolist() == [[i, label] for i, label in enumerate(labels.tolist()) if label < num_classes]


def test_fast_rcnn_of_boxes_for_all_classes_alike():
    """By hand: a box 10 wide, half of which overlaps the object, costs 1 - IoU = 2/3, over two proposals."""
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    objects = torch.tensor([[5.0, 0, 15, 10], [torch.nan] * 4])
    deltas = torch.tensor([[0.0] * 4, [torch.inf] * 4]).requires_grad_()
    loss_bbox = MODELS.build({"type": "IoULoss", "mode": "linear"})
    labels, logits = torch.tensor([1, 2]), torch.zeros(2, 3)
    parts = DeltaXYWHBBoxCoder(), CrossEntropyLoss(), loss_bbox
    found = fast_rcnn_losses(logits, deltas, proposals, objects, labels, *parts, reg_decoded_bbox=True)
    assert found["loss_bbox"].item() == pytest.approx(2 / 3 / 2)
    found["loss_bbox"].backward()
    assert torch.isfinite(deltas.grad[0]).all()
    # A row of no weight changes nothing, whatever it holds: it is classified rightly, and its box is nowhere.
    rows = torch.tensor([[0.0, 9, 0]]), torch.full((1, 4), torch.inf), proposals[:1], objects[:1], labels[:1]
    padded = fast_rcnn_losses(
        *(torch.cat(pair) for pair in zip((logits, deltas, proposals, objects, labels), rows, strict=True)),
        *parts,
        weights=torch.tensor([1.0, 1, 0]),
        reg_decoded_bbox=True,
    )
    for key, value in found.items():
        torch.testing.assert_close(padded[key], value)


@pytest.mark.parametrize("use_sigmoid", [False, True])
@pytest.mark.parametrize("background_sigmoid", [False, True])
def test_fast_rcnn_of_nothing(use_sigmoid, background_sigmoid):
    """Zeros that reach logits and deltas; Detectron2's sigmoid form has no gradient there, and DDP would hang."""
    logits, deltas = torch.zeros(0, 6, requires_grad=True), torch.zeros(0, 20, requires_grad=True)
    boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    found = fast_rcnn_losses(
        logits,
        deltas,
        boxes,
        boxes,
        labels,
        DeltaXYWHBBoxCoder(),
        CrossEntropyLoss(use_sigmoid=use_sigmoid),
        L1Loss(),
        background_sigmoid=background_sigmoid,
    )
    assert all(value == 0 for value in found.values())
    (found["loss_cls"] + found["loss_bbox"]).backward()
    assert logits.grad is not None
    assert deltas.grad is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"logits": torch.zeros(3, 3)},
            r"logits \(R, C \+ 1\) and labels \(R,\) were expected, got \(3, 3\) and \(2,\)",
        ),
        ({"deltas": torch.zeros(2, 12)}, r"deltas \(2, 4\) or \(2, 2 \* 4\) were expected, got \(2, 12\)"),
        ({"gt_boxes": torch.zeros(1, 4)}, r"gt_boxes \(2, 4\) were expected, got \(1, 4\)"),
    ],
)
def test_fast_rcnn_refuses_shapes_that_do_not_fit(changes, message):
    inputs = {
        "logits": torch.zeros(2, 3),
        "deltas": torch.zeros(2, 4),
        "proposals": torch.zeros(2, 4),
        "gt_boxes": torch.zeros(2, 4),
        "labels": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        fast_rcnn_losses(
            **(inputs | changes), coder=DeltaXYWHBBoxCoder(), loss_cls=CrossEntropyLoss(), loss_bbox=L1Loss()
        )


def test_federated_classes_alone_learn():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 5, generator=generator).requires_grad_(), torch.tensor([0, 4, 2])
    boxes = torch.tensor([[0.0, 0, 9, 9]] * 3)
    parts = torch.zeros(3, 4), boxes, boxes, labels, DeltaXYWHBBoxCoder(), CrossEntropyLoss(use_sigmoid=True), L1Loss()
    mask = torch.tensor([True, False, True, False])
    # By hand: cross entropy of the first and third column, over three proposals.
    target = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
    columns = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, [0, 2]], target, reduction="sum")
    with NoSync():
        found = fast_rcnn_losses(logits, *parts, background_sigmoid=False, class_mask=mask)["loss_cls"]
        found.backward()
    torch.testing.assert_close(found, columns / 3)
    assert logits.grad.any(dim=0).tolist() == [True, False, True, False, False]
    with_background = fast_rcnn_losses(logits, *parts, class_mask=mask)["loss_cls"]
    last = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 4], (labels == 4).float(), reduction="sum")
    torch.testing.assert_close(with_background, (columns + last) / 3)
    with pytest.raises(
        ValueError, match=r"class_mask \(4,\) for sigmoids was expected, got \(4,\) and use_sigmoid=False"
    ):
        fast_rcnn_losses(logits, *parts[:5], CrossEntropyLoss(), L1Loss(), class_mask=mask)


def test_federated_classes_are_those_of_objects_and_some_drawn_by_frequency():
    generator = torch.Generator().manual_seed(0)
    labels, frequency = torch.tensor([3, 3, 6, 1]), torch.tensor([1.0, 1, 3, 1, 0, 6])
    counts = torch.zeros(6)
    with NoSync():
        for _ in range(3000):
            chosen = federated_classes(labels, 6, 3, frequency, generator)
            counts += chosen
    # Classes 1 and 3 always; of the others one, by 1 : 3 : 0 : 6; 6 is background.
    assert counts[[1, 3]].tolist() == [3000, 3000]
    assert counts.sum() == 9000
    torch.testing.assert_close(counts[[0, 2, 4, 5]] / 3000, torch.tensor([0.1, 0.3, 0, 0.6]), rtol=0, atol=0.03)
    assert federated_classes(labels, 6, 0, generator=generator).tolist() == [False, True, False, True, False, False]
    assert federated_classes(labels, 6, 6, generator=generator).all()
    for count, rates in ((7, None), (-1, None), (2, torch.ones(5))):
        with pytest.raises(
            ValueError, match=r"count must be in \[0, 6\], got|frequency \(6,\) was expected, got \(5,\)"
        ):
            federated_classes(labels, 6, count, rates)
