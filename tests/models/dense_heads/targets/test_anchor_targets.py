"""Which assigners an anchor head takes, weights of positives, and which anchors are inside padded images."""

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.models.dense_heads.targets.anchor_targets import anchor_targets, valid_anchors
from detkit.models.dense_heads.targets.part_checks import check_assigner
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import (
    AnchorGenerator,
    ATSSAssigner,
    HungarianAssigner,
    MaxIoUAssigner,
    MultiInstanceAssigner,
    PointAssigner,
    PseudoSampler,
    TaskAlignedAssigner,
)

OFFERED = ["num_level_priors"]


@pytest.mark.parametrize(
    ("assigner", "message"),
    [
        (HungarianAssigner({"type": "IoUCost"}), "HungarianAssigner assigns predictions;"),
        (PointAssigner(), "PointAssigner assigns points;"),
        (MultiInstanceAssigner(pos_iou_thr=0.5, neg_iou_thr=0.5), "MultiInstanceAssigner assigns proposals, several"),
        (TaskAlignedAssigner(topk=3), "TaskAlignedAssigner needs bboxes, scores"),
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


@pytest.mark.parametrize(("pos_weight", "weight"), [(-1, 1.0), (2.5, 2.5)])
def test_the_weight_of_positives(pos_weight, weight):
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    truth = GroundTruth.from_instances([InstanceData(bboxes=anchors[:1], labels=torch.tensor([1]))])
    targets = anchor_targets(anchors, truth, None, MaxIoUAssigner(0.5, 0.5), PseudoSampler(), None, 3, pos_weight)
    assert targets.labels.tolist() == [[1, 3]]
    assert targets.label_weights.tolist() == [[weight, 1.0]]


def test_strides_that_differ_by_axis():
    """4 rows of 8 pixels and 2 columns of 32: all is inside an image of 32 x 64, half of it inside one of 16 x 64."""
    generator = AnchorGenerator([(32, 8)], [1.0], [1.0])
    (anchors,) = generator.grid_priors([(4, 2)])
    whole, upper = ({"pad_shape": (height, 64), "img_shape": (height, 64)} for height in (32, 16))
    assert valid_anchors(anchors, generator, [(4, 2)], [whole], -1) is None
    assert valid_anchors(anchors, generator, [(4, 2)], [whole, upper], -1).tolist() == [
        [True] * 8,
        [True] * 4 + [False] * 4,
    ]
    # No image of 64 x 32 holds the second column.
    turned = {"pad_shape": (64, 32), "img_shape": (64, 32)}
    assert valid_anchors(anchors, generator, [(4, 2)], [turned], -1).tolist() == [[True, False] * 4]


def test_a_coarse_level_may_reach_beyond_what_the_fine_one_covers():
    generator = AnchorGenerator([8, 16], [1.0], [1.0])
    sizes = [(2, 2), (2, 2)]
    anchors = torch.cat(generator.grid_priors(sizes))
    meta = {"pad_shape": (16, 16), "img_shape": (16, 16)}
    # The second row and column of stride 16 begin where the padded image ends.
    assert valid_anchors(anchors, generator, sizes, [meta], -1).tolist() == [[True] * 4 + [True, False, False, False]]
