"""VOCMetric against MMDetection's values, by hand, and what is wrong with its input."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from reference import assert_same, cases

from detkit.evaluation import VOCMetric
from detkit.evaluation.voc_metric import average_precision, match
from detkit.registry import METRICS
from detkit.structures.sample import DetDataSample


@pytest.mark.parametrize("case", cases("metrics/VOCMetric"))
def test_reference(case):
    metric = METRICS.build(case["config"])
    metric.dataset_meta = {"classes": case["inputs"]["classes"]}
    images = case["inputs"]["images"]
    for index, image in enumerate(images):
        gt = InstanceData(bboxes=image["gt_bboxes"], labels=image["gt_labels"])
        ignored = InstanceData(bboxes=image["ignored_bboxes"], labels=image["ignored_labels"])
        found = InstanceData(bboxes=image["bboxes"], labels=image["labels"], scores=image["scores"])
        sample = DetDataSample(gt_instances=gt, ignored_instances=ignored, pred_instances=found)
        metric.process({}, [sample.to_dict() if index % 2 else sample])
    found = {name: value for name, value in metric.evaluate(len(images)).items() if name in case["outputs"]}
    assert_same(found, case["outputs"], rtol=0, atol=6e-4)  # the reference is rounded to three decimals


@pytest.mark.parametrize(
    ("right", "count", "area", "points"),
    [
        # Precision 1 up to recall 1/2, 2/3 up to 1: six levels up to 0.5, five above.
        ([True, False, True], 2, 0.5 + 0.5 * 2 / 3, (6 + 5 * 2 / 3) / 11),
        ([False, True], 4, 0.25 * 0.5, 3 * 0.5 / 11),
        ([], 3, 0.0, 0.0),
        ([False], 0, 0.0, 0.0),
    ],
)
def test_average_precision_by_hand(right, count, area, points):
    right = np.array(right, dtype=bool)
    assert average_precision(right, count) == pytest.approx(area)
    assert average_precision(right, count, "11points") == pytest.approx(points)


def test_who_is_right_by_hand():
    gt, other = [0.0, 0, 9, 9], [20.0, 20, 29, 29]  # 10 x 10 with the last pixel
    image = {
        "gt": np.array([gt]),
        "ignored": np.array([other]),
        # IoU with gt 1/2 exactly (10 x 5 of 10 x 10), 1, none; and the ignored one.
        "found": np.array([[0, 0, 9, 4], gt, [50, 50, 60, 60], other]),
        "scores": np.array([0.6, 0.5, 0.7, 0.9]),
    }
    right, count = match([image], 0.5)
    assert (right.tolist(), count) == ([False, True, False], 1)
    right, _ = match([image], 0.51)
    assert right.tolist() == [False, False, True]


def metric_of(**arguments):
    metric = VOCMetric(**arguments)
    metric.dataset_meta = {"classes": ("cat", "dog")}
    return metric


def predicted(label):
    return InstanceData(bboxes=torch.ones(1, 4), labels=torch.tensor([label]), scores=torch.ones(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "AP"}, KeyError, "'mAP' or 'recall' was expected, got 'AP'"),
        ({"metric": ["mAP", "recall"]}, KeyError, "was expected, got"),
        ({"eval_mode": "12points"}, ValueError, "eval_mode: .* got '12points'"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        VOCMetric(**arguments)


def test_what_is_missing_is_named():
    metric = metric_of()
    with pytest.raises(ValueError, match=r"image 7: VOCMetric takes the ground truth of the samples.*LoadAnnotations"):
        metric.process({}, [DetDataSample(metainfo={"img_id": 7}, pred_instances=predicted(0))])
    gt = InstanceData(bboxes=torch.ones(1, 4), labels=torch.zeros(1, dtype=torch.long))
    metric.process({}, [DetDataSample(gt_instances=gt, pred_instances=predicted(2))])
    with pytest.raises(ValueError, match=r"labels 2 … 2, but the data set has 2 classes: set num_classes"):
        metric.evaluate(1)
    with pytest.raises(ValueError, match="no image was evaluated"):
        metric_of().evaluate(0)
    metric = metric_of()
    metric.dataset_meta = {}
    metric.process({}, [DetDataSample(gt_instances=gt, pred_instances=predicted(0))])
    with pytest.raises(ValueError, match="needs dataset_meta with the key 'classes'"):
        metric.evaluate(1)
