"""Dynamic R-CNN: threshold and beta follow the training; the reference's losses are in test_parity.py."""

import numpy as np
import pytest
import torch
from models.roi_heads.small import ASSIGNER, TWO_FCS, roi_head, scene, train
from no_sync import NoSync
from two_processes import losses_of_two_processes

from detkit.structures.boxes import bbox_overlaps

DYNAMIC = {"iou_topk": 2, "beta_topk": 1, "update_iter_interval": 2, "initial_iou": 0.1, "initial_beta": 1.0}
BBOX_HEAD = {**TWO_FCS, "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0}}
EVERY = {"type": "RandomSampler", "num": 64, "pos_fraction": 1.0}


def dynamic_head(assigner=ASSIGNER, bbox_head=BBOX_HEAD, **changes):
    config = {"dynamic_rcnn": {**DYNAMIC, **changes}}
    return roi_head(bbox_head, assigner, EVERY, "DynamicRoIHead", config).train()


def state_of(head):
    return {name: value.clone() for name, value in head.resume_state().items()}


def steps(head, count):
    for _ in range(count):
        with NoSync():
            head.loss(*scene())
    return state_of(head)


def ious_and_targets():
    """Highest IoUs of the proposals of both images, and targets of the positives, those of the objects too."""
    _, proposals, samples = scene()
    objects = samples[0].gt_instances.bboxes
    found = bbox_overlaps(proposals.boxes[0], objects)
    best, index = found.max(dim=1)
    mine, its = proposals.boxes[0][best >= 0.5], objects[index[best >= 0.5]]
    shift = (its[:, :2] + its[:, 2:] - mine[:, :2] - mine[:, 2:]) / 2 / (mine[:, 2:] - mine[:, :2]) / 0.1
    targets = torch.cat([torch.zeros(len(objects)), shift.abs().mean(dim=1)])
    ious = np.concatenate([np.ones(len(objects)), np.sort(best.numpy())[::-1]])
    return [ious, np.zeros(5)], np.sort(targets.numpy())


def test_threshold_and_beta_are_those_of_the_last_steps():
    ious, targets = ious_and_targets()
    # The 4th best IoU of the first image, and of the second, without objects, 0; the 2 * 3rd smallest target: two
    # objects' own and, of the three proposals on them, the greatest but one.
    for topk, beta_topk in ((4, 2), (50, 50)):
        head = dynamic_head(iou_topk=topk, beta_topk=beta_topk, initial_beta=100.0, initial_iou=0.0)
        before = steps(head, 1)
        assert before["thresholds"].tolist() == [0.5, 0.5, 0.5]
        assert before["beta"] == 1
        after = steps(head, 1)
        expected = np.mean([one[min(topk, len(one)) - 1] for one in ious])
        np.testing.assert_allclose(after["thresholds"], [expected] * 3, rtol=1e-5)
        np.testing.assert_allclose(after["beta"], targets[min(2 * beta_topk, len(targets)) - 1], rtol=1e-5)
        assert after["iou_history"].isnan().all()
        assert after["beta_history"].isnan().all()


def test_they_are_bounded():
    found = steps(dynamic_head(initial_iou=0.6, initial_beta=0.01, beta_topk=50), 2)
    np.testing.assert_allclose(found["thresholds"], [0.6] * 3)
    np.testing.assert_allclose(found["beta"], 0.01)


def test_targets_of_nothing_leave_beta_as_it_is():
    """The smallest target is 0, of an object that was added as a proposal."""
    assert steps(dynamic_head(beta_topk=1), 4)["beta"] == 1


def test_the_median_is_numpys():
    head = dynamic_head(update_iter_interval=5)
    for values in ([0.3], [0.3, 0.1], [0.3, 0.1, 0.2], [0.4, 0.1, 0.2, 0.25], [0.5, 0.4, 0.3, 0.2, 0.1]):
        for value in values + [torch.nan] * (5 - len(values)):
            head._learn(torch.tensor(0.6), torch.tensor(value))
        np.testing.assert_allclose(head.beta, np.median(values), rtol=1e-6)


def test_the_next_steps_use_them():
    """With an IoU threshold that all exceed, every proposal of the first image is positive."""
    head = dynamic_head(iou_topk=12, beta_topk=6, initial_beta=0.5)
    first = head.loss(*scene())
    head.loss(*scene())
    third = head.loss(*scene())
    assert first["iou_thr"] == 0.5
    assert third["iou_thr"] == pytest.approx(0.1)
    assert third["beta"] == head.bbox_head.loss_bbox.beta == 0.5
    assert third["loss_bbox"] != first["loss_bbox"]
    train(head)


def test_a_resumed_head_goes_on_exactly():
    whole, cut, rest = dynamic_head(), dynamic_head(), dynamic_head()
    expected = steps(whole, 5)
    saved = steps(cut, 3)
    rest.load_resume_state(saved)
    found = steps(rest, 2)
    for name, value in expected.items():
        assert torch.equal(found[name].nan_to_num(-1), value.nan_to_num(-1)), name
    assert saved["num_steps"] == 3
    with pytest.raises(ValueError, match="iou_history was saved with update_iter_interval 2, and it is 3 now"):
        dynamic_head(update_iter_interval=3).load_resume_state(saved)


def test_it_has_the_weights_of_a_standard_head_and_learns_in_training_alone():
    head = dynamic_head()
    assert head.state_dict().keys() == roi_head(BBOX_HEAD).state_dict().keys()
    head.eval().loss(*scene())
    assert head.num_steps == 0


def test_two_processes_have_the_same_threshold(monkeypatch):
    """The mean of what they had; here the first has both of the objects."""
    feats, proposals, samples = scene()
    ious, _ = ious_and_targets()

    def losses_of(rank):
        one = slice(rank, rank + 1)
        head = dynamic_head(update_iter_interval=1, initial_iou=0.0, iou_topk=4)
        split = type(proposals)(proposals.boxes[one], proposals.scores[one], proposals.valid[one])
        head.loss([level[one] for level in feats], split, samples[one])
        return state_of(head)

    first, second = losses_of_two_processes(monkeypatch, losses_of)
    assert torch.equal(first["thresholds"], second["thresholds"])
    np.testing.assert_allclose(first["thresholds"][0], ious[0][3] / 2, rtol=1e-5)


def test_no_proposals_and_no_objects():
    head = dynamic_head(update_iter_interval=1)
    feats, proposals, samples = scene()
    nothing = type(proposals)(proposals.boxes[:, :0], proposals.scores[:, :0], proposals.valid[:, :0])
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    assert all(torch.isfinite(value).all() for value in head.loss(feats, nothing, samples).values())
    assert head.thresholds.tolist() == [0.5, 0.5, 0.5]
    assert head.beta == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: dynamic_head(bbox_head=TWO_FCS | {"loss_bbox": {"type": "L1Loss"}}),
            "must be a SmoothL1Loss, .* L1Loss",
        ),
        (
            lambda: dynamic_head(assigner={**ASSIGNER, "neg_iou_thr": (0.1, 0.5)}),
            r"neg_iou_thr .* has \[0.5, \(0.1, 0.5\)",
        ),
        (lambda: dynamic_head(iou_topk=0), "iou_topk must be"),
        (lambda: dynamic_head(initial_iou=2), "initial_iou must be"),
        (
            lambda: roi_head(BBOX_HEAD, kind="DynamicRoIHead"),
            "train_cfg.dynamic_rcnn lacks iou_topk, beta_topk, update",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=f"DynamicRoIHead: .*{message}"):
        build()


def test_an_unknown_key_is_refused():
    with pytest.raises(KeyError, match="iou_top"):
        dynamic_head(iou_top=3)
