"""OpenImagesMetric against MMDetection's values, groups by hand, and what is wrong with its input."""

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from reference import assert_same, cases

from detkit.evaluation import OpenImagesMetric
from detkit.registry import METRICS
from detkit.structures.sample import DetDataSample


def sample_of(instances, bboxes, labels, scores, verified=None):
    facts = {"img_id": "a", "instances": instances}
    sample = DetDataSample(metainfo=facts if verified is None else {**facts, "image_level_labels": verified})
    sample.pred_instances = InstanceData(
        bboxes=torch.as_tensor(bboxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.as_tensor(labels, dtype=torch.long),
        scores=torch.as_tensor(scores, dtype=torch.float32),
    )
    return sample


@pytest.mark.parametrize("case", cases("metrics/OpenImagesMetric"))
def test_reference(case):
    metric = METRICS.build(case["config"])
    relation = case["inputs"]["relation"].numpy()
    metric.dataset_meta = {"classes": [str(label) for label in range(len(relation))], "RELATION_MATRIX": relation}
    images = case["inputs"]["images"]
    for index, image in enumerate(images):
        instances = [
            {"bbox": box.tolist(), "bbox_label": int(label), "is_group_of": bool(group)}
            for box, label, group in zip(image["gt_bboxes"], image["gt_labels"], image["group"], strict=True)
        ]
        verified = image["verified"].numpy() if index % 3 else None
        metric.process({}, [sample_of(instances, image["bboxes"], image["labels"], image["scores"], verified)])
    assert_same(metric.evaluate(len(images)), case["outputs"], rtol=0, atol=6e-4)  # rounded to three decimals


def metric_of(relation=((1, 0), (1, 1)), **arguments):
    """Two classes; the second is below the first."""
    metric = OpenImagesMetric(**arguments)
    metric.dataset_meta = {"classes": ("animal", "cat"), "RELATION_MATRIX": np.array(relation)}
    return metric


BOX, GROUP = [0.0, 0, 10, 10], [0.0, 0, 100, 100]


def test_many_in_a_group_are_one_and_an_empty_group_is_wrong():
    metric = metric_of(get_supercategory=False)
    group = {"bbox": GROUP, "bbox_label": 1, "is_group_of": True}
    metric.process({}, [sample_of([group], [BOX, [20, 20, 30, 30], [200, 200, 210, 210]], [1, 1, 1], [0.5, 0.9, 0.7])])
    # The group is found with 0.9, the third is wrong with 0.7, and nothing else is to be found.
    assert metric.evaluate(1) == pytest.approx({"openimages/mAP": 1.0, "openimages/AP50": 1.0})
    metric.process({}, [sample_of([group], [BOX, [200, 200, 210, 210]], [1, 1], [0.5, 0.7])])
    assert metric.evaluate(1)["openimages/mAP"] == pytest.approx(0.5)


def test_classes_above_are_judged_too_and_others_only_where_looked_for():
    cat = {"bbox": BOX, "bbox_label": 1, "is_group_of": False}
    metric = metric_of()
    metric.process({}, [sample_of([cat], [BOX], [1], [0.5]), sample_of([], [BOX], [1], [0.9])])
    # A cat found is an animal found; in the second image nobody looked.
    assert metric.evaluate(2)["openimages/mAP"] == pytest.approx(1)
    metric.process({}, [sample_of([cat], [BOX], [1], [0.5]), sample_of([], [BOX], [1], [0.9], np.array([0]))])
    # Somebody looked for animals there, of which there are none: those are at 1/2, cats at 1.
    assert metric.evaluate(2)["openimages/mAP"] == pytest.approx(0.75)


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match=r"ioa_thrs: 2 thresholds were expected, got 0\.5"):
        OpenImagesMetric(iou_thrs=[0.5, 0.6])
    with pytest.raises(ValueError, match="use_group_of=True, got None"):
        OpenImagesMetric(ioa_thrs=None)
    with pytest.raises(ValueError, match="needs dataset_meta with the key 'RELATION_MATRIX'"):
        OpenImagesMetric().process({}, [sample_of([], [], [], [])])
    with pytest.raises(ValueError, match=r"image 7: no 'instances'; let the samples carry them"):
        metric_of().process({}, [{"img_id": 7}])
    with pytest.raises(ValueError, match="labels 5 … 5, but the data set has 2 classes"):
        metric_of().process({}, [sample_of([], [BOX], [5], [0.5])])
