"""Which assigners an anchor head takes."""

import pytest

from detkit.models.dense_heads.anchor_targets import check_assigner
from detkit.task_modules import (
    ATSSAssigner,
    HungarianAssigner,
    MaxIoUAssigner,
    MultiInstanceAssigner,
    PointAssigner,
    SimOTAAssigner,
)

OFFERED = ["num_level_priors"]


@pytest.mark.parametrize(
    ("assigner", "message"),
    [
        (HungarianAssigner({"type": "IoUCost"}), "HungarianAssigner assigns predictions;"),
        (PointAssigner(), "PointAssigner assigns points;"),
        (MultiInstanceAssigner(pos_iou_thr=0.5, neg_iou_thr=0.5), "MultiInstanceAssigner assigns proposals, several"),
        (SimOTAAssigner(), "SimOTAAssigner needs bboxes, scores"),
    ],
)
def test_what_an_anchor_head_cannot_use_is_refused(assigner, message):
    with pytest.raises(ValueError, match=f"MyHead: train_cfg.assigner: {message}"):
        check_assigner(assigner, OFFERED, "MyHead")


def test_what_assigns_boxes_is_taken():
    class Mine:
        def assign(self, pred_instances, gt_instances, gt_instances_ignore=None, **kwargs):
            """Of an image."""

    class MinePoints(Mine):
        prior_kind = "points"

    assert check_assigner(None, OFFERED, "MyHead") == []
    assert check_assigner(Mine(), OFFERED, "MyHead") == []
    assert check_assigner(MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4), OFFERED, "MyHead") == []
    assert check_assigner(ATSSAssigner(topk=9), OFFERED, "MyHead") == OFFERED
    with pytest.raises(ValueError, match="MinePoints assigns points"):
        check_assigner(MinePoints(), OFFERED, "MyHead")
