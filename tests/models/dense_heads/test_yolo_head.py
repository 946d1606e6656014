"""YOLOv3: responsible cells by hand, smooth labels, thresholds, what is refused."""

import pytest
import torch
from mmengine.structures import InstanceData
from no_sync import NoSync
from reference import arguments, case_named, load_weights

from detkit.models import YOLOV3Head
from detkit.models.dense_heads.yolo_head import responsible_cells
from detkit.registry import MODELS
from detkit.structures.ground_truth import GroundTruth


def test_responsible_cells_by_hand():
    one = InstanceData(
        # Centres (20, 4), (12, 30); and one outside
        bboxes=torch.tensor([[16.0, 0, 24, 8], [4, 20, 20, 40], [60, 60, 90, 90]]),
        labels=torch.zeros(3, dtype=torch.int64),
    )
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    with NoSync():
        coarse, fine = responsible_cells(GroundTruth.from_instances([one, none]), [(2, 2), (4, 4)], [(16, 16), (8, 8)])
    assert coarse.int().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
    assert fine[0].view(4, 4).int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert not fine[1].any()


def test_nothing_but_padding_has_no_responsible_cell():
    none = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    (cells,) = responsible_cells(GroundTruth.from_instances([none]), [(2, 2)], [(16, 16)])
    assert not cells.any()


def head_of(case, **changes):
    head = MODELS.build({**case["config"], **changes})
    load_weights(head, case)
    return head


def test_smooth_labels_cost_as_their_mixture():
    """The loss is linear in the target: a share of all classes, the rest of the one."""
    case = case_named("dense_heads/YOLOV3Head", "loss")
    inputs = arguments(case["inputs"])
    smooth, sharp, uniform = (
        head_of(case, one_hot_smoother=share).loss(inputs["x"], inputs["batch_data_samples"])["loss_cls"]
        for share in (0.25, 0.0, 1.0)
    )
    torch.testing.assert_close(smooth, 0.75 * sharp + 0.25 * uniform)


def test_confidence_threshold_leaves_out_anchors():
    case = case_named("dense_heads/YOLOV3Head", "predict")
    test_cfg = {**case["config"]["test_cfg"], "max_per_img": -1, "nms_pre": -1}
    inputs = arguments(case["inputs"])
    counts = [
        sum(len(one) for one in head_of(case, test_cfg={**test_cfg, "conf_thr": conf_thr}).eval().predict(**inputs))
        for conf_thr in (-1, 0.5, 1.1)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


@pytest.mark.parametrize("name", ["GridAssigner", "MaxIoUAssigner"])
def test_assigners_that_fit(name):
    case = case_named("dense_heads/YOLOV3Head", "loss")
    head = head_of(case, train_cfg={"assigner": {"type": name, "pos_iou_thr": 0.5, "neg_iou_thr": 0.4}})
    inputs = arguments(case["inputs"])
    with NoSync():
        losses = head.loss(inputs["x"], inputs["batch_data_samples"])
        sum(losses.values()).backward()
    assert all(torch.isfinite(value) and value > 0 for value in losses.values())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"featmap_strides \[8, 16, 32\] are not those of the anchors"):
        YOLOV3Head(2, [8, 8, 8], featmap_strides=[8, 16, 32])
    with pytest.raises(ValueError, match="each level needs one of each"):
        YOLOV3Head(2, [8, 8])
    with pytest.raises(ValueError, match="YOLOV3Head: loss_wh must have reduction='sum', got 'mean'"):
        YOLOV3Head(2, [8, 8, 8], loss_wh={"type": "MSELoss"})
    with pytest.raises(ValueError, match="SimOTAAssigner assigns points"):
        YOLOV3Head(2, [8, 8, 8], train_cfg={"assigner": {"type": "SimOTAAssigner"}})
