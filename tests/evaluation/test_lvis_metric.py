"""LVIS's rules by hand, and COCO's figures where every category was looked for everywhere."""

import copy
import json

import pytest
import torch
from mmengine.structures import InstanceData
from reference import case_named

from detkit.evaluation import CocoMetric, LVISMetric
from detkit.structures.sample import DetDataSample

BOX, OTHER = [10.0, 10, 30, 30], [50.0, 50, 70, 70]


def content():
    """Three images; a cat in the first, which was looked for in the second; dogs nowhere."""
    images = [
        {"id": i, "height": 100, "width": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
        for i in (1, 2, 3)
    ]
    images[1]["neg_category_ids"] = [4]
    return {
        "images": images,
        "categories": [{"id": 4, "name": "cat", "frequency": "r"}, {"id": 9, "name": "dog", "frequency": "f"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 4, "bbox": [10, 10, 20, 20], "area": 400}],
    }


def sample_of(image_id, boxes=(), labels=(), scores=(), **fields):
    sample = DetDataSample(metainfo={"img_id": image_id, "ori_shape": (100, 100)})
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.long),
        **fields,
    )
    return sample


def evaluated(tmp_path, value, *samples, kind=LVISMetric, **arguments):
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(value))
    metric = kind(str(file), **arguments)
    metric.dataset_meta = {"classes": ("cat", "dog")}
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_a_detection_counts_only_where_its_category_was_looked_for(tmp_path):
    right = sample_of(1, [BOX], [0], [0.5])
    # A better one in the third image, where nobody looked for cats, costs nothing; in the second it does.
    found = evaluated(tmp_path, content(), right, sample_of(2), sample_of(3, [BOX], [0], [0.9]))
    assert found["lvis/bbox_AP"] == pytest.approx(1)
    assert found["lvis/bbox_AP50"] == pytest.approx(1)
    found = evaluated(tmp_path, content(), right, sample_of(2, [BOX], [0], [0.9]), sample_of(3))
    assert found["lvis/bbox_AP"] == pytest.approx(0.5)
    # Dogs have no objects and no figure; cats are rare.
    assert found["lvis/bbox_APr"] == pytest.approx(0.5)
    assert found["lvis/bbox_APf"] == found["lvis/bbox_APc"] == -1


def test_where_annotation_is_not_exhaustive_nothing_is_wrong(tmp_path):
    value = content()
    value["images"][0]["not_exhaustive_category_ids"] = [4]
    samples = sample_of(1, [OTHER, BOX], [0, 0], [0.9, 0.5]), sample_of(2), sample_of(3)
    assert evaluated(tmp_path, value, *samples)["lvis/bbox_AP"] == pytest.approx(1)
    assert evaluated(tmp_path, content(), *samples)["lvis/bbox_AP"] == pytest.approx(0.5)
    value["annotations"][0]["bbox"] = [0, 0, 5, 5]  # an object that is not found is missed all the same
    assert evaluated(tmp_path, value, *samples)["lvis/bbox_AP"] == 0


def test_the_best_three_hundred_of_an_image_are_judged(tmp_path):
    boxes, labels = [OTHER] * 300 + [BOX], [1] * 300 + [0]
    first = sample_of(1, boxes, labels, [0.9] * 300 + [0.1])
    assert evaluated(tmp_path, content(), first, sample_of(2), sample_of(3))["lvis/bbox_AP"] == 0
    first = sample_of(1, boxes[1:], labels[1:], [0.9] * 299 + [0.1])
    assert evaluated(tmp_path, content(), first, sample_of(2), sample_of(3))["lvis/bbox_AP"] == pytest.approx(1)


def test_masks_and_single_classes(tmp_path):
    value = content()
    value["annotations"][0]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    masks = torch.zeros(1, 100, 100, dtype=torch.bool)
    masks[0, 10:30, 10:25] = True  # three quarters: right at six of ten thresholds
    none = torch.zeros(0, 100, 100)
    samples = sample_of(1, [BOX], [0], [0.5], masks=masks), sample_of(2, masks=none), sample_of(3, masks=none)
    found = evaluated(tmp_path, value, *samples, metric=["bbox", "segm"], classwise=True)
    assert found["lvis/segm_AP"] == found["lvis/segm_cat_precision"] == pytest.approx(0.6)
    assert found["lvis/bbox_cat_precision"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_complete_annotation_gives_the_figures_of_coco(tmp_path, kind):
    case = case_named("metrics/CocoMetric", kind)
    value = copy.deepcopy(case["inputs"]["annotations"])
    value["annotations"] = [a for a in value["annotations"] if not a["iscrowd"]]
    ids = [category["id"] for category in value["categories"]]
    for image in value["images"]:
        image.update(neg_category_ids=ids, not_exhaustive_category_ids=[])
    for number, category in enumerate(value["categories"]):
        category["frequency"] = "rcf"[number % 3]
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(value))
    found = []
    items = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@300", "ARs@300", "ARm@300", "ARl@300")
    names = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l", "AR@300", "AR_s@1000", "AR_m@1000", "AR_l@1000")
    for metric in (
        LVISMetric(str(file), metric=kind, metric_items=items, classwise=True),
        CocoMetric(str(file), metric=kind, metric_items=names, proposal_nums=(1, 300, 301), classwise=True),
    ):
        metric.dataset_meta = {"classes": case["inputs"]["classes"]}
        for prediction in case["inputs"]["predictions"]:
            fields = {key: prediction[key] for key in ("bboxes", "scores", "labels", "masks")}
            facts = {key: prediction[key] for key in ("img_id", "ori_shape")}
            metric.process({}, [{**facts, "pred_instances": fields}])
        found.append(list(metric.evaluate(len(case["inputs"]["predictions"])).values()))
    assert found[0] == pytest.approx(found[1], nan_ok=True)
    assert 0 < found[0][0] < 1


def test_what_is_wrong_is_named(tmp_path):
    value = content()
    del value["images"][2]["neg_category_ids"]
    with pytest.raises(ValueError, match=r"lvis\.json: image 3 has no neg_category_ids; LVISMetric needs a LVIS file"):
        evaluated(tmp_path, value, sample_of(1))
    with pytest.raises(KeyError, match=r"LVISMetric has no metric 'proposal'; did you mean 'proposal_fast'"):
        LVISMetric(metric="proposal")
    with pytest.raises(KeyError, match=r"LVISMetric has no metric item 'mAP'; did you mean"):
        LVISMetric(metric_items=["mAP"])
