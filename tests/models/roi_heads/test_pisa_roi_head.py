"""Prime sample attention; losses and gradients were compared with MMDetection 3.3.0."""

import pytest
import torch
from models.roi_heads.small import ASSIGNER, TWO_FCS, C, roi_head, scene, train
from no_sync import NoSync
from two_processes import assert_mean_of_both, losses_of_two_processes

from detkit.models.roi_heads.bbox_heads.box_targets import of_own_class
from detkit.structures.boxes import bbox_overlaps
from detkit.structures.ground_truth import GroundTruth

HLR = {"type": "ScoreHLRSampler", "num": 16, "pos_fraction": 0.5}
EVERY = {"type": "RandomSampler", "num": 64, "pos_fraction": 1.0}
BOTH = {"isr": {"k": 2, "bias": 0}, "carl": {"k": 1, "bias": 0.2}}


def pisa_head(bbox_head=TWO_FCS, sampler=EVERY, **train_cfg):
    head = roi_head(bbox_head, ASSIGNER, sampler, "PISARoIHead", train_cfg or BOTH)
    with torch.no_grad():  # so that boxes, and scores, differ
        head.bbox_head.fc_reg.weight.normal_(generator=torch.Generator().manual_seed(1))
    return head.train()


@pytest.mark.parametrize("sampler", [HLR, EVERY, {**EVERY, "type": "OHEMSampler"}])
@pytest.mark.parametrize(
    "part",
    [
        {},
        {"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True}},
        {"loss_cls": {"type": "SeesawLoss", "num_classes": C, "return_dict": False}},
        {"reg_class_agnostic": True},
    ],
)
def test_it_learns(sampler, part):
    train(pisa_head({**TWO_FCS, **part}, sampler))


def test_without_either_it_is_a_standard_head():
    head, standard = pisa_head(isr=None, carl=None), roi_head(sampler=EVERY)
    standard.load_state_dict(head.state_dict())
    expected, found = standard.loss(*scene()), head.loss(*scene())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def sampled_of(head):
    """The sampled regions of the scene, what the head says of them, and its weights of them."""
    feats, proposals, samples = scene()
    sampled = head.train_cfg.sample(proposals, GroundTruth.from_samples(samples), C, feats)
    outputs = head._bbox_forward(feats, sampled.rois)
    old = head.bbox_head.get_targets(sampled, head.train_cfg).label_weights
    new = head._prime_weights(outputs["cls_score"], outputs["bbox_pred"], sampled, old, head.isr)
    return sampled, outputs, old, new


def test_the_better_a_box_among_those_of_its_object_the_more_its_class_weighs():
    head = pisa_head(isr={"k": 1, "bias": 0})
    sampled, outputs, old, new = sampled_of(head)
    positive = sampled.positive.flatten()
    most = sampled.gt_index.flatten()[positive].bincount().max()
    assert positive.sum() == 6
    assert torch.equal(new[~positive], old[~positive])
    own = of_own_class(outputs["bbox_pred"], sampled.labels.flatten(), 4)
    boxes = head.bbox_head.bbox_coder.decode(sampled.boxes.flatten(0, 1), own)
    ious = bbox_overlaps(boxes, sampled.gt_boxes.flatten(0, 1), is_aligned=True)
    for index in (0, 1):  # both objects are of classes of their own
        mine = positive & (sampled.gt_index.flatten() == index)
        by_iou = new[mine][ious[mine].argsort(descending=True)]
        # The best is of rank 0: m/m, then (m - 1)/m, ... of the number m that the largest class has.
        torch.testing.assert_close(by_iou / by_iou[0], (most - torch.arange(len(by_iou))) / most)
    loss = head.bbox_head.loss_cls(outputs["cls_score"], sampled.labels.flatten(), reduction_override="none")
    torch.testing.assert_close((loss * new)[positive].sum(), (loss * old)[positive].sum())


def test_statistics_are_of_one_look():
    """Importance is calculated from losses; a loss that counts what it sees counts the step once."""
    part = {"loss_cls": {"type": "SeesawLoss", "num_classes": C, "return_dict": False}}
    head, standard = pisa_head({**TWO_FCS, **part}), roi_head({**TWO_FCS, **part}, sampler=EVERY)
    head.loss(*scene())
    standard.loss(*scene())
    assert standard.bbox_head.loss_cls.cum_samples.sum() > 0
    assert torch.equal(head.bbox_head.loss_cls.cum_samples, standard.bbox_head.loss_cls.cum_samples)


def test_a_step_does_not_wait():
    head = pisa_head()
    with NoSync():
        sum(value.sum() for name, value in head.loss(*scene()).items() if "loss" in name).backward()


def test_carl_teaches_the_scores_of_good_boxes():
    """Its gradient reaches the classes' layer."""
    head = pisa_head(isr=None, carl={})
    (carl,) = torch.autograd.grad(head.loss(*scene())["loss_carl"].sum(), [head.bbox_head.fc_cls.weight])
    assert carl.abs().sum() > 0
    assert head.carl.bias == 0.2


def test_two_processes_have_the_losses_of_one_with_all_images(monkeypatch):
    """Both weigh, and keep the sum, within a process's own images; here one of the images has all objects."""
    feats, proposals, samples = scene()
    head = pisa_head()

    def losses_of(rank):
        one = slice(rank, rank + 1)
        split = type(proposals)(proposals.boxes[one], proposals.scores[one], proposals.valid[one])
        return head.loss([level[one] for level in feats], split, samples[one])

    together = head.loss(feats, proposals, samples)
    assert_mean_of_both(losses_of_two_processes(monkeypatch, losses_of), together, rtol=1e-4, atol=1e-5)


SEESAW = {**TWO_FCS, "loss_cls": {"type": "SeesawLoss", "num_classes": C}}
SABL = {
    "type": "SABLHead",
    "num_classes": C,
    "cls_in_channels": 4,
    "reg_in_channels": 4,
    "roi_feat_size": 2,
    "bbox_coder": {"type": "BucketingBBoxCoder", "num_buckets": 4, "scale_factor": 2.0},
}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pisa_head(isr={"k": -1}), "train_cfg.isr: k must be"),
        (lambda: pisa_head(carl={"bias": 2}), "train_cfg.carl: bias must be"),
        (lambda: pisa_head(SEESAW), "train_cfg.isr needs one classification loss .* SeesawLoss gives several"),
        (lambda: roi_head(SABL, kind="PISARoIHead"), "must be encoded by four numbers; BucketingBBoxCoder codes"),
        (
            lambda: pisa_head({**TWO_FCS, "reg_decoded_bbox": True, "loss_bbox": {"type": "GIoULoss"}}),
            "train_cfg.carl weighs encoded boxes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=f"PISARoIHead: .*{message}"):
        build()
