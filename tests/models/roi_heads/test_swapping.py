"""Parts of a StandardRoIHead are swapped by config: what fits trains, what does not is refused when built."""

import sys

import pytest
import torch
from models.dense_heads.test_swapping import ASSIGNERS, BOX_LOSSES, CLASS_LOSSES, CODERS
from models.roi_heads.small import TWO_FCS, C, roi_head, scene, train
from no_sync import NoSync

from detkit.models.layers.predictors import NormedLinear
from detkit.structures.proposals import Proposals

QUOTA = {"num": 16, "pos_fraction": 0.5}
COMBINED = {
    "type": "CombinedSampler",
    "pos_sampler": {"type": "InstanceBalancedPosSampler"},
    "neg_sampler": {"type": "IoUBalancedNegSampler", "floor_thr": 0.0, "num_bins": 3},
    **QUOTA,
}
SAMPLERS = {
    "RandomSampler": {"type": "RandomSampler", **QUOTA},
    "RandomSampler without objects": {"type": "RandomSampler", **QUOTA, "add_gt_as_proposals": False},
    "CombinedSampler": COMBINED,
    "CombinedSampler of OHEM": {**COMBINED, "neg_sampler": {"type": "OHEMSampler"}},
    "InstanceBalancedPosSampler": {"type": "InstanceBalancedPosSampler", **QUOTA},
    "IoUBalancedNegSampler": {"type": "IoUBalancedNegSampler", **QUOTA},
    "OHEMSampler": {"type": "OHEMSampler", **QUOTA},
    "ScoreHLRSampler": {"type": "ScoreHLRSampler", **QUOTA},
    "PseudoSampler": {"type": "PseudoSampler"},
    "MaskPseudoSampler": {"type": "MaskPseudoSampler"},
    "MultiInsRandomSampler": {"type": "MultiInsRandomSampler", **QUOTA},
}
NOT_OF_PROPOSALS = {"MaskPseudoSampler", "MultiInsRandomSampler"}
RUN_THE_HEAD = {"CombinedSampler of OHEM", "OHEMSampler", "ScoreHLRSampler"}

LABEL_LOSSES = {
    **CLASS_LOSSES,
    "softmax CrossEntropyLoss": {"type": "CrossEntropyLoss"},
    "SeesawLoss": {"type": "SeesawLoss", "num_classes": C},
    "SeesawLoss as one": {"type": "SeesawLoss", "num_classes": C, "return_dict": False},
    "EQLV2Loss": {"type": "EQLV2Loss", "num_classes": C},
    "CrossEntropyCustomLoss": {"type": "CrossEntropyCustomLoss", "num_classes": C},
    "sigmoid CrossEntropyCustomLoss": {"type": "CrossEntropyCustomLoss", "num_classes": C, "use_sigmoid": True},
    "FocalCustomLoss": {"type": "FocalCustomLoss", "num_classes": C},
    "GHMC": {"type": "GHMC", "momentum": 0.5},
}
NOT_OF_LABELS = {
    *("mask CrossEntropyLoss", "QualityFocalLoss", "VarifocalLoss"),
    *("GaussianFocalLoss", "L1Loss"),
}
# What these need of a proposal, a stage has not: levels, scores, squares of approximate anchors, cells of a grid.
FIT_ASSIGNERS = {"MaxIoUAssigner", "CenterRegionAssigner"}
FIT_CODERS = {
    *("DeltaXYWHBBoxCoder", "DeltaXYWHBBoxCoderForGLIP", "LegacyDeltaXYWHBBoxCoder"),
    *("TBLRBBoxCoder", "PseudoBBoxCoder"),
}
ON_COORDINATES = {"L1Loss", "SmoothL1Loss", "BalancedL1Loss", "MSELoss", "GHMR"}
ON_BOXES = ON_COORDINATES | {
    *("IoULoss", "GIoULoss", "DIoULoss", "CIoULoss", "EIoULoss", "SIoULoss", "BoundedIoULoss"),
}
USUAL = ("MaxIoUAssigner", "RandomSampler", "DeltaXYWHBBoxCoder", "softmax CrossEntropyLoss", "SmoothL1Loss")
TABLES = (ASSIGNERS, SAMPLERS, CODERS, LABEL_LOSSES, BOX_LOSSES)


def build(assigner, sampler, coder, loss_cls, loss_bbox, **box_head):
    """The RoI head of a config that names these parts."""
    parts = {"bbox_coder": coder, "loss_cls": loss_cls, "loss_bbox": loss_bbox}
    decoded = loss_bbox["type"] not in ON_COORDINATES
    return roi_head({**TWO_FCS, **parts, "reg_decoded_bbox": decoded, **box_head}, assigner, sampler)


def fits(assigner, sampler, coder, loss_cls, loss_bbox):
    """Whether parts of these names fit together; a table of its own, not the code's."""
    fit = assigner in FIT_ASSIGNERS and coder in FIT_CODERS and loss_bbox in ON_BOXES
    # A region has no one loss where they are two by name.
    unranked = sampler in RUN_THE_HEAD and loss_cls == "SeesawLoss"
    return fit and sampler not in NOT_OF_PROPOSALS and loss_cls not in NOT_OF_LABELS and not unranked


def check(*names):
    """Train what fits; what does not is refused with the reason, when it is built."""
    parts = [table[name] for table, name in zip(TABLES, names, strict=True)]
    if fits(*names):
        train(build(*parts))
        return True
    with pytest.raises(ValueError, match=r"(train_cfg\.assigner|train_cfg\.sampler[.\w]*|bbox_coder|loss_\w+): "):
        build(*parts)
    return False


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_and_class_losses(sampler):
    outcomes = [check(USUAL[0], sampler, USUAL[2], loss_cls, USUAL[4]) for loss_cls in LABEL_LOSSES]
    of_labels = len(LABEL_LOSSES) - len(NOT_OF_LABELS) - (sampler in RUN_THE_HEAD)
    assert sum(outcomes) == (0 if sampler in NOT_OF_PROPOSALS else of_labels)


@pytest.mark.parametrize("coder", CODERS)
def test_coders_and_box_losses(coder):
    outcomes = [check(*USUAL[:2], coder, USUAL[3], loss_bbox) for loss_bbox in BOX_LOSSES]
    assert sum(outcomes) == (len(ON_BOXES) if coder in FIT_CODERS else 0)


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_assigners_and_samplers(assigner):
    outcomes = [check(assigner, sampler, *USUAL[2:]) for sampler in ("RandomSampler", "PseudoSampler", "OHEMSampler")]
    assert all(outcomes) == (assigner in FIT_ASSIGNERS)
    assert any(outcomes) == (assigner in FIT_ASSIGNERS)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in NOT_OF_PROPOSALS])
def test_a_step_does_not_wait(sampler, monkeypatch):
    """But for the suppression by which ScoreHLRSampler groups predictions; here everything is a group of its own."""
    suppression = sys.modules["detkit.ops.nms_match"]
    monkeypatch.setattr(suppression, "_unsuppressed", lambda beats: torch.ones_like(beats[:, 0]))
    loss_cls = LABEL_LOSSES["SeesawLoss as one"]
    head = build(ASSIGNERS["MaxIoUAssigner"], SAMPLERS[sampler], CODERS[USUAL[2]], loss_cls, BOX_LOSSES["L1Loss"])
    feats, proposals, samples = scene()
    with NoSync():
        sum(head.loss(feats, proposals, samples).values()).sum().backward()


def statistics(loss_cls, sampler, padding=0):
    """What a loss has counted after a step with all of the scene's proposals, and the step's losses."""
    feats, proposals, samples = scene()
    torch.manual_seed(0)
    sampler = {**SAMPLERS[sampler], "num": 64, "pos_fraction": 1.0}
    head = build(ASSIGNERS["MaxIoUAssigner"], sampler, CODERS[USUAL[2]], LABEL_LOSSES[loss_cls], BOX_LOSSES["GHMR"])
    padded = (
        torch.nn.functional.pad(value, pad)
        for value, pad in zip(
            (proposals.boxes, proposals.scores, proposals.valid),
            ((0, 0, 0, padding), (0, padding), (0, padding)),
            strict=True,
        )
    )
    losses = head.loss(feats, Proposals(*padded), samples)
    return dict(head.bbox_head.named_buffers()), losses


STATEFUL = ["SeesawLoss as one", "EQLV2Loss", "GHMC"]


@pytest.mark.parametrize("loss_cls", STATEFUL)
def test_padding_does_not_move_what_a_loss_counts(loss_cls):
    before = dict(
        build(
            *(table[name] for table, name in zip(TABLES, (*USUAL[:3], loss_cls, "GHMR"), strict=True))
        ).bbox_head.named_buffers()
    )
    expected, losses = statistics(loss_cls, "RandomSampler")
    assert any(not torch.equal(before[name], value) for name, value in expected.items())
    found, padded_losses = statistics(loss_cls, "RandomSampler", padding=30)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    for name, value in losses.items():
        torch.testing.assert_close(padded_losses[name], value)


@pytest.mark.parametrize("loss_cls", STATEFUL)
def test_a_sampler_that_looks_at_losses_does_not_move_what_they_count(loss_cls):
    expected, _ = statistics(loss_cls, "RandomSampler")
    found, _ = statistics(loss_cls, "OHEMSampler")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_seesaw_counts_the_sampled_regions():
    """Two objects, and all proposals but one, whose IoU lies between the thresholds."""
    seen, _ = statistics("SeesawLoss as one", "RandomSampler", padding=7)
    assert seen["loss_cls.cum_samples"].sum() == 2 + (12 - 1) + 5


@pytest.mark.parametrize(
    "loss_cls", ["softmax CrossEntropyLoss", "SeesawLoss", "EQLV2Loss", "sigmoid CrossEntropyCustomLoss"]
)
def test_normed_predictors(loss_cls):
    normed = {"type": "NormedLinear", "tempearture": 10}
    parts = [table[name] for table, name in zip(TABLES, (*USUAL[:3], loss_cls, "L1Loss"), strict=True)]
    head = build(*parts, cls_predictor_cfg=normed, reg_predictor_cfg=normed)
    train(head)
    assert type(head.bbox_head.fc_cls) is type(head.bbox_head.fc_reg) is NormedLinear
    feats, proposals, samples = scene()
    found = head.eval().predict(feats, proposals, samples)
    assert all(len(one) > 0 and (one.labels < C).all() for one in found)


def test_a_loss_of_other_classes_is_refused():
    with pytest.raises(ValueError, match="SeesawLoss: the head has 3 classes, the loss num_classes=1203"):
        build(ASSIGNERS["MaxIoUAssigner"], COMBINED, CODERS[USUAL[2]], {"type": "SeesawLoss"}, BOX_LOSSES["L1Loss"])
