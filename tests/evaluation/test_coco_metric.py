import json
import logging

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.structures import InstanceData
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from reference import assert_same, case_named, cases

from detkit.datasets import CocoDataset
from detkit.evaluation import CocoMetric
from detkit.evaluation.coco_results import read_annotations
from detkit.registry import METRICS
from detkit.structures.sample import DetDataSample

# What MMDetection cannot do and detkit does: each has a test below.
DONE_BETTER = {"proposal_fast", "one_thr", "no_detections"}


@pytest.fixture
def told():
    """Lines of the run's log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.extend(record.getMessage().splitlines())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def samples(inputs):
    for prediction in inputs["predictions"]:
        fields = {key: prediction[key] for key in ("bboxes", "scores", "labels", "masks") if key in prediction}
        yield {"img_id": prediction["img_id"], "ori_shape": prediction["ori_shape"], "pred_instances": fields}


def run_case(case, tmp_path, **changes):
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(case["inputs"]["annotations"]))
    metric = METRICS.build({**case["config"], "ann_file": str(file), **changes})
    metric.dataset_meta = {"classes": case["inputs"]["classes"]}
    for sample in samples(case["inputs"]):
        metric.process({}, [sample])
    return metric.evaluate(len(case["inputs"]["predictions"]))


@pytest.mark.parametrize("case", cases("metrics/CocoMetric"))
def test_reference(case, tmp_path):
    if case["name"] in DONE_BETTER:
        assert not case["outputs"]
    elif "error" in case:
        with pytest.raises(KeyError, match="did you mean"):
            run_case(case, tmp_path)
    else:
        assert_same(run_case(case, tmp_path), case["outputs"], rtol=0, atol=1e-3)


def test_one_threshold_may_be_a_number(tmp_path):
    found = run_case(case_named("metrics/CocoMetric", "one_thr"), tmp_path)
    expected = case_named("metrics/CocoMetric", "bbox")["outputs"]["coco/bbox_mAP_50"]
    assert found == {"coco/bbox_mAP": pytest.approx(expected, abs=1e-3)}


def test_no_detections_score_zero_and_are_told(tmp_path, told):
    found = run_case(case_named("metrics/CocoMetric", "no_detections"), tmp_path, classwise=True)
    assert set(found.values()) == {0.0}
    assert {"coco/bbox_mAP", "coco/bbox_mAP_l", "coco/cup_precision"} < set(found)
    assert "bbox: the model detected nothing in 30 images" in told


def test_fast_recall_counts_every_object_found(tmp_path):
    case = case_named("metrics/CocoMetric", "perfect")
    found = run_case(case, tmp_path, metric="proposal_fast", proposal_nums=(1, 1000))
    assert found["coco/AR@1000"] == 1
    truth = [a for a in case["inputs"]["annotations"]["annotations"] if not a["iscrowd"]]
    # One proposal per image finds one object of each image that has any.
    with_objects = {a["image_id"] for a in truth}
    assert found["coco/AR@1"] == pytest.approx(len(with_objects) / len(truth))


def test_fast_recall_looks_at_the_best_proposals(tmp_path):
    metric = metric_of(tmp_path, metric="proposal_fast", proposal_nums=(1, 2))
    found = evaluated(metric, sample_of(5, [CAT_BOX, DOG_BOX], [0, 0], scores=[0.1, 0.9]), sample_of(9, [], []))
    assert found == {"coco/AR@1": 0, "coco/AR@2": 0.5}


def test_own_thresholds_leave_the_fixed_ones_out(tmp_path):
    found = run_case(case_named("metrics/CocoMetric", "bbox"), tmp_path, iou_thrs=[0.5, 0.75])
    assert found["coco/bbox_mAP"] > 0
    assert found["coco/bbox_mAP_50"] == found["coco/bbox_mAP_75"] == -1


def test_map_looks_at_a_hundred_detections_and_map_50_at_all(tmp_path):
    metric = metric_of(tmp_path, classes=("cat",))
    boxes, scores = [[70.0, 70, 80, 80]] * 100 + [CAT_BOX], [0.9] * 100 + [0.1]
    found = evaluated(metric, sample_of(5, boxes, [0] * 101, scores=scores), sample_of(9, [], []))
    assert found["coco/bbox_mAP"] == 0
    assert found["coco/bbox_mAP_50"] == pytest.approx(1 / 101)


def test_one_limit_stands_for_all(tmp_path):
    metric = metric_of(tmp_path, classes=("cat",), proposal_nums=[300], metric_items=["mAP", "AR@100", "AR@1000"])
    boxes, scores = [[70.0, 70, 80, 80]] * 100 + [CAT_BOX], [0.9] * 100 + [0.1]
    found = evaluated(metric, sample_of(5, boxes, [0] * 101, scores=scores), sample_of(9, [], []))
    assert found["coco/bbox_mAP"] == pytest.approx(1 / 101)  # beyond the hundred of COCO
    assert found["coco/bbox_AR@100"] == found["coco/bbox_AR@1000"] == 1


def test_an_annotation_with_the_id_zero_can_be_found(tmp_path):
    content = json.loads(json.dumps(ANNOTATIONS))
    content["annotations"][0]["id"] = 0  # which pycocotools takes for no match
    metric = metric_of(tmp_path, content)
    found = evaluated(metric, sample_of(5, [CAT_BOX], [0]), sample_of(9, [DOG_BOX], [1]))
    assert found["coco/bbox_mAP"] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_unrounded_numbers_are_those_of_pycocotools(tmp_path, kind):
    case = case_named("metrics/CocoMetric", kind)
    inputs = case["inputs"]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(inputs["annotations"]))
    truth = COCO(str(file))
    ids = {category["name"]: category["id"] for category in inputs["annotations"]["categories"]}
    listed = []
    for prediction in inputs["predictions"]:
        for box, score, label, mask in zip(
            *(prediction[key] for key in ("bboxes", "scores", "labels", "masks")), strict=True
        ):
            x1, y1, x2, y2 = box.tolist()
            shape = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "bbox" else {"segmentation": mask}
            category_id = ids[inputs["classes"][label]]
            listed.append(
                {"image_id": prediction["img_id"], "category_id": category_id, "score": float(score), **shape}
            )
    judge = COCOeval(truth, truth.loadRes(listed), kind)
    judge.params.maxDets = [100, 300, 1000]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    names = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
    names += ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")
    found = run_case(case, tmp_path, metric_items=names)
    assert list(found.values()) == pytest.approx(judge.stats.tolist(), rel=1e-12)


# Two images, each with a 20 x 20 object of one category; ids with holes, and not in the order of the names.
ANNOTATIONS = {
    "images": [{"id": 5, "height": 100, "width": 100}, {"id": 9, "height": 100, "width": 100}],
    "categories": [{"id": 40, "name": "dog"}, {"id": 0, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 0, "bbox": [10, 10, 20, 20]},
        {"id": 2, "image_id": 9, "category_id": 40, "bbox": [50, 50, 20, 20]},
    ],
}
CAT_BOX, DOG_BOX = [10.0, 10, 30, 30], [50.0, 50, 70, 70]


def sample_of(image_id, boxes, labels, scores=None, **fields):
    sample = DetDataSample(metainfo={"img_id": image_id, "ori_shape": (100, 100)})
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.tensor(scores if scores is not None else [0.9] * len(labels)),
        labels=torch.tensor(labels, dtype=torch.long),
        **fields,
    )
    return sample


def metric_of(tmp_path, content=ANNOTATIONS, classes=("cat", "dog"), meta=(), **arguments):
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(content))
    metric = CocoMetric(**arguments)
    metric.dataset_meta = {"classes": classes, "ann_file": str(file), **dict(meta)}
    return metric


@pytest.mark.parametrize("classes", [("cat", "dog"), ("dog", "cat")])
def test_classes_are_found_by_name_in_any_order(tmp_path, classes):
    metric = metric_of(tmp_path, classes=classes, classwise=True)
    # The cat is found, the dog is taken for a cat.
    metric.process({}, [sample_of(5, [CAT_BOX], [classes.index("cat")])])
    metric.process({}, [sample_of(9, [DOG_BOX], [classes.index("cat")], scores=[0.5])])
    found = metric.evaluate(2)
    assert found["coco/cat_precision"] == pytest.approx(1)
    assert found["coco/dog_precision"] == 0
    assert found["coco/bbox_mAP"] == pytest.approx(0.5)


def test_a_subset_of_the_classes_is_judged_alone(tmp_path):
    metric = metric_of(tmp_path, classes=("dog",), classwise=True)
    metric.process({}, [sample_of(5, [], []), sample_of(9, [DOG_BOX], [0])])
    found = metric.evaluate(2)
    assert found["coco/dog_precision"] == found["coco/bbox_mAP"] == pytest.approx(1)
    assert found["coco/bbox_mAP_l"] == -1  # no large object


def test_table_lists_each_class(tmp_path, told):
    metric = metric_of(tmp_path, classwise=True)
    metric.process({}, [sample_of(5, [CAT_BOX], [0]), sample_of(9, [], [])])
    metric.evaluate(2)
    cat, dog = (next(line for line in told if line.startswith(f"| {name} ")) for name in ("cat", "dog"))
    assert cat.split("|")[2:8] == [" 1.000 ", " 1.000  ", " 1.000  ", " 1.000 ", " nan   ", " nan   "]
    assert dog.split("|")[2].strip() == "0.000"


def test_each_metric_keeps_its_own_class_figures(tmp_path):
    mask = np.zeros((1, 100, 100), bool)
    mask[0, 10:30, 10:20] = True  # half of the cat
    content = json.loads(json.dumps(ANNOTATIONS))
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    metric = metric_of(tmp_path, content, metric=["bbox", "segm"], classwise=True)
    metric.process({}, [sample_of(5, [CAT_BOX], [0], masks=torch.from_numpy(mask))])
    metric.process({}, [sample_of(9, [], [], masks=torch.zeros(0, 100, 100))])
    found = metric.evaluate(2)
    assert found["coco/bbox_cat_precision"] == pytest.approx(1)
    # IoU 0.5 is right at the first of ten thresholds.
    assert found["coco/segm_cat_precision"] == found["coco/cat_precision"] == pytest.approx(0.1)


@pytest.mark.parametrize("form", ["bool", "uint8", "compressed", "plain run lengths"])
def test_masks_in_any_form_give_the_same_figures(tmp_path, form):
    content = json.loads(json.dumps(ANNOTATIONS))
    first, second = content["annotations"]
    first["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    # Columns of 100: from column 50 on, 20 pixels in each of 20 columns, from row 50 on; as run lengths.
    second["segmentation"] = {"size": [100, 100], "counts": [5050, 20, *[80, 20] * 19, 30 + 3000]}
    masks = np.zeros((2, 100, 100), dtype=bool)
    masks[0, 10:30, 10:25] = masks[1, 50:70, 50:70] = True  # three quarters of the cat, all of the dog
    lengths = [rle.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    given = {
        "bool": [torch.from_numpy(masks[:1]), torch.from_numpy(masks[1:])],
        "uint8": [masks[:1].astype(np.uint8), masks[1:].astype(np.uint8)],
        "compressed": [lengths[:1], lengths[1:]],
        "plain run lengths": [
            [{"size": [100, 100], "counts": [1010, 20, *[80, 20] * 14, 70 + 7500]}],
            [second["segmentation"]],
        ],
    }[form]
    metric = metric_of(tmp_path, content, metric=["bbox", "segm"], classwise=True)
    samples = [sample_of(5, [CAT_BOX], [0], masks=given[0]), sample_of(9, [DOG_BOX], [1], masks=given[1])]
    found = evaluated(metric, *samples)
    assert found["coco/segm_cat_precision"] == pytest.approx(0.6)  # IoU 0.75 is right at six of ten thresholds
    assert found["coco/segm_dog_precision"] == pytest.approx(1)
    assert found["coco/bbox_mAP"] == pytest.approx(1)


def test_masks_of_another_size_than_their_image_are_refused(tmp_path):
    metric = metric_of(tmp_path, metric="segm")
    with pytest.raises(ValueError, match=r"image 5: a predicted mask has 50 x 60 pixels .* the image 100 x 100"):
        metric.process({}, [sample_of(5, [CAT_BOX], [0], masks=torch.zeros(1, 50, 60))])


def test_ground_truth_without_masks_is_named(tmp_path):
    metric = metric_of(tmp_path, metric="segm")
    with pytest.raises(ValueError, match=r"annotations\.json: annotation 1 \(image 5\) has no segmentation"):
        evaluated(metric, sample_of(5, [CAT_BOX], [0], masks=torch.zeros(1, 100, 100)))


@pytest.mark.parametrize(("mask_scores", "expected"), [([0.2, 0.8], 1.0), ([0.8, 0.2], 0.5)])
def test_masks_are_ranked_by_their_own_scores(tmp_path, mask_scores, expected):
    content = json.loads(json.dumps(ANNOTATIONS))
    content["annotations"][0]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]
    content["annotations"].pop()
    masks = torch.zeros(2, 100, 100)
    masks[0, 60:, 60:] = 1
    masks[1, 10:30, 10:30] = 1
    fields = {"masks": masks, "mask_scores": torch.tensor(mask_scores)}
    metric = metric_of(tmp_path, content, classes=("cat",), metric="segm")
    empty = sample_of(9, [], [], masks=torch.zeros(0, 100, 100))
    found = evaluated(metric, sample_of(5, [DOG_BOX, CAT_BOX], [0, 0], scores=[0.5, 0.5], **fields), empty)
    assert found["coco/segm_mAP"] == pytest.approx(expected)


def test_detections_are_written_in_the_results_format(tmp_path):
    metric = metric_of(
        tmp_path, metric=["bbox", "segm"], format_only=True, outfile_prefix=str(tmp_path / "out" / "val")
    )
    mask = torch.ones(1, 100, 100, dtype=torch.bool)
    metric.process({}, [sample_of(5, [CAT_BOX], [1], scores=[0.25], masks=mask)])
    assert metric.evaluate(1) == {}
    expected = {"image_id": 5, "category_id": 40, "score": 0.25, "bbox": [10, 10, 20, 20]}
    assert json.loads((tmp_path / "out" / "val.bbox.json").read_text()) == [expected]
    (written,) = json.loads((tmp_path / "out" / "val.segm.json").read_text())
    assert rle.area(written["segmentation"]) == 100 * 100


def test_ground_truth_may_travel_with_the_samples():
    metric = CocoMetric()
    metric.dataset_meta = {"classes": ("cat", "dog")}
    crowd = {"bbox": DOG_BOX, "bbox_label": 1, "ignore_flag": 1}
    sample = sample_of(5, [CAT_BOX], [0])
    sample.set_metainfo({"instances": [{"bbox": CAT_BOX, "bbox_label": 0, "ignore_flag": 0}, crowd]})
    metric.process({}, [sample])
    # The dog is a crowd, which cannot be missed, so only the cat counts.
    assert metric.evaluate(1)["coco/bbox_mAP"] == pytest.approx(1)


def test_ground_truth_from_nowhere_is_refused():
    metric = CocoMetric()
    metric.dataset_meta = {"classes": ("cat",)}
    with pytest.raises(ValueError, match="give ann_file"):
        metric.process({}, [sample_of(5, [], [])])


BAD = [
    {"image_id": 5, "category_id": 40, "bbox": [200, 1, 5, 5], "id": 3},
    {"image_id": 5, "category_id": 40, "bbox": [-5, 1, 5, 5], "id": 4},
    {"image_id": 5, "category_id": 40, "bbox": [1, 1, None, 5], "id": 5},
    {"image_id": 5, "bbox": [1, 1, 5, 5], "id": 6},
    {"category_id": 40, "bbox": [1, 1, 5, 5], "id": 7},
    {"image_id": 5, "category_id": 40, "bbox": [1, 1, 5, 5]},
    {"image_id": 5, "category_id": 40, "bbox": [1, 1, 5, 5], "id": 1},
    {"image_id": 6, "category_id": 40, "bbox": [1, 1, 5, 5], "id": 8},
    {"image_id": 5, "category_id": 999, "bbox": [1, 1, 5, 5], "id": 9},
]


def test_the_metric_leaves_out_what_the_data_set_drops(tmp_path, told):
    content = json.loads(json.dumps(ANNOTATIONS))
    content["images"] = [{**image, "file_name": "x.png"} for image in content["images"]]
    # A box partly outside stays, in both.
    content["annotations"] += [*BAD, {"image_id": 9, "category_id": 40, "bbox": [95, 95, 10, 10], "id": 10}]
    metric = metric_of(tmp_path, content)
    metric.process({}, [sample_of(5, [CAT_BOX], [0]), sample_of(9, [DOG_BOX, [95, 95, 105, 105]], [1, 1])])
    assert metric.evaluate(2)["coco/bbox_mAP"] == pytest.approx(1)
    assert any(f"not evaluated: {len(BAD)} bad annotations," in line for line in told)
    file = str(tmp_path / "annotations.json")
    dataset = CocoDataset(file, data_prefix={"img": "mem://"}, bad_annotations="drop", test_mode=True)
    kept = {instance["ann_id"] for i in range(2) for instance in dataset.get_data_info(i)["instances"]}
    assert kept == {a["id"] for a in read_annotations(file, None)["annotations"]} == {1, 2, 10}


def test_boxes_of_no_size_are_not_missed(tmp_path, told):
    content = json.loads(json.dumps(ANNOTATIONS))
    content["annotations"].append({"id": 3, "image_id": 5, "category_id": 0, "bbox": [1, 1, 0, 5]})
    metric = metric_of(tmp_path, content)
    metric.process({}, [sample_of(5, [CAT_BOX], [0]), sample_of(9, [DOG_BOX], [1])])
    assert metric.evaluate(2)["coco/bbox_mAP"] == pytest.approx(1)
    assert any("not evaluated: 1 bad annotation," in line for line in told)


def evaluated(metric, *given):
    metric.process({}, given)
    return metric.evaluate(len(given))


def test_a_class_that_the_file_lacks_is_named(tmp_path):
    metric = metric_of(tmp_path, classes=("cat", "dogg"))
    with pytest.raises(ValueError, match=r"annotations.json: has no category 'dogg'; did you mean 'dog'"):
        evaluated(metric, sample_of(5, [CAT_BOX], [0]))


def test_categories_of_one_name_need_their_ids(tmp_path):
    content = {**ANNOTATIONS, "categories": [{"id": 39, "name": "dog"}, *ANNOTATIONS["categories"]]}
    with pytest.raises(ValueError, match=r"categories \[39, 40\] are all named 'dog'"):
        evaluated(metric_of(tmp_path, content), sample_of(9, [DOG_BOX], [1]))
    metric = metric_of(tmp_path, content, meta={"category_ids": (0, 40)}, classwise=True)
    found = evaluated(metric, sample_of(5, [CAT_BOX], [0]), sample_of(9, [DOG_BOX], [1]))
    assert found["coco/dog_precision"] == pytest.approx(1)


def test_a_label_without_a_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels 0 … 2, but the data set has 2 classes: set num_classes"):
        evaluated(metric_of(tmp_path), sample_of(5, [CAT_BOX, CAT_BOX], [0, 2]))


def test_an_image_counts_once(tmp_path):
    with pytest.raises(ValueError, match="image 5 was evaluated twice"):
        evaluated(metric_of(tmp_path), sample_of(5, [], []), sample_of(5, [], []))


def test_images_left_out_count_as_missed_and_are_told(tmp_path, told):
    found = evaluated(metric_of(tmp_path), sample_of(5, [CAT_BOX], [0]))
    assert found["coco/bbox_mAP"] == pytest.approx(0.5)
    assert any("1 of 2 images were evaluated" in line for line in told)


def test_an_unknown_image_is_named(tmp_path):
    with pytest.raises(ValueError, match="no image with the id 6"):
        evaluated(metric_of(tmp_path), sample_of(6, [], []))


def test_no_image_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no image was evaluated"):
        metric_of(tmp_path).evaluate(0)


def test_a_score_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="image 5: a predicted box or score is not a finite number"):
        metric_of(tmp_path).process({}, [sample_of(5, [CAT_BOX], [0], scores=[float("nan")])])


def test_masks_asked_for_and_not_predicted(tmp_path):
    with pytest.raises(ValueError, match="image 5: the metric 'segm' needs masks"):
        evaluated(metric_of(tmp_path, metric="segm"), sample_of(5, [CAT_BOX], [0]))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"metric": "box"}, KeyError, "no metric 'box'; did you mean 'bbox'"),
        ({"metric_items": ["map50"]}, KeyError, "no metric item 'map50'; did you mean 'mAP_50'"),
        ({"format_only": True}, ValueError, "outfile_prefix"),
        ({"proposal_nums": (100, 300)}, ValueError, r"one number or three.*\(100, 300\)"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        CocoMetric(**arguments)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1, 2]", "is not COCO: images, annotations, categories missing"),
        ('{"images": []', "is not JSON"),
        ('{"images": [], "categories": []}', "annotations missing"),
    ],
)
def test_a_file_that_is_not_coco(tmp_path, text, match):
    metric = metric_of(tmp_path)
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        evaluated(metric, sample_of(5, [], []))


def test_a_missing_file_is_named(tmp_path):
    metric = metric_of(tmp_path, ann_file=str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        evaluated(metric, sample_of(5, [], []))
