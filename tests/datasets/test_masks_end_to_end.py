"""Masks from the annotation file to the batch, and from predictions to the metric, by the shipped configs."""

import json

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as rle

from detkit.config import load
from detkit.datasets.shapes import generate
from detkit.models.data_preprocessor import DetDataPreprocessor
from detkit.registry import DATASETS, METRICS
from detkit.structures import BitmapMasks, PolygonMasks
from tests.shipped import CONFIGS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        generate(folder, split, num_images=8)
    return folder


@pytest.fixture(scope="module")
def cfg(root):
    return load(CONFIGS / "_base_/datasets/shapes_instance.py", {"data_root": f"{root}/"})


def datasets(cfg, mode, **changes):
    settings = {**cfg[f"{mode}_dataloader"]["dataset"], "type": "CocoDataset", **changes}
    return DATASETS.build(settings)


def test_masks_are_where_their_boxes_are_in_the_padded_batch(cfg):
    np.random.seed(0)
    dataset = datasets(cfg, "train")
    samples = [dataset[index] for index in range(8)]
    preprocess = DetDataPreprocessor(pad_size_divisor=32, pad_mask=True)
    batch = preprocess({key: [sample[key] for sample in samples] for key in samples[0]}, training=True)
    height, width = batch["inputs"].shape[-2:]
    assert (height, width) == (128, 128)
    seen = 0
    for sample in batch["data_samples"]:
        objects = sample.gt_instances
        assert isinstance(objects.masks, BitmapMasks)
        assert objects.masks.masks.shape == (len(objects), height, width)
        np.testing.assert_allclose(objects.masks.get_bboxes(), objects.bboxes.numpy(), atol=1.01)
        seen += len(objects)
    assert seen > 15


def test_polygons_and_run_lengths_of_one_shape_give_one_bitmap(root, tmp_path, cfg):
    content = json.loads((root / "train" / "annotations.json").read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    as_polygons = tmp_path / "polygons.json"
    as_polygons.write_text(json.dumps(content))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        rles = rle.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        annotation["segmentation"] = {**rle.merge(rles)}
        annotation["segmentation"]["counts"] = annotation["segmentation"]["counts"].decode()
    as_run_lengths = tmp_path / "run_lengths.json"
    as_run_lengths.write_text(json.dumps(content))

    def masks(file, **loading):
        steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations", "with_mask": True, **loading}]
        steps += [{"type": "RandomFlip", "prob": 1.0}, {"type": "Resize", "scale": (200, 160)}]
        steps += [{"type": "Pad", "size": (220, 200)}, {"type": "PackDetInputs"}]
        dataset = datasets(cfg, "train", ann_file=str(file), pipeline=steps)
        return [dataset[index]["data_samples"] for index in range(len(dataset))]

    polygons = masks(as_polygons, poly2mask=False)
    for sample, bitmaps, lengths in zip(polygons, masks(as_polygons), masks(as_run_lengths), strict=True):
        assert isinstance(sample.gt_instances.masks, PolygonMasks)
        np.testing.assert_array_equal(bitmaps.gt_instances.masks.masks, lengths.gt_instances.masks.masks)
        drawn = sample.gt_instances.masks.to_ndarray()
        assert drawn.shape[1:] == (200, 220)
        assert (drawn != bitmaps.gt_instances.masks.masks).mean() < 0.01
    # Run lengths have no corners: where polygons are asked for their objects are to be ignored.
    ignored = masks(as_run_lengths, poly2mask=False)
    assert all(len(sample.gt_instances) == 0 for sample in ignored)
    assert sum(len(sample.ignored_instances) for sample in ignored) == len(content["annotations"])


@pytest.mark.parametrize("form", ["tensor", "run lengths"])
def test_the_truth_predicted_scores_one(cfg, form):
    dataset = datasets(cfg, "val")
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        masks = sample.gt_instances.masks.to_tensor(torch.bool, "cpu")
        if form == "run lengths":
            masks = [rle.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8)) for mask in masks]
        boxes, labels = sample.gt_instances.bboxes, sample.gt_instances.labels
        factor = boxes.new_tensor(sample.metainfo["scale_factor"] * 2)
        assert torch.equal(factor, torch.ones(4))
        sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(boxes)), masks=masks)
        metric.process({}, [sample])
    found = metric.evaluate(len(dataset))
    assert found["coco/bbox_mAP"] == found["coco/segm_mAP"] == 1
    assert {"coco/segm_disc_precision", "coco/bbox_disc_precision", "coco/segm_mAP_s"} <= set(found)


def test_the_config_for_coco_asks_for_masks():
    cfg = load(CONFIGS / "_base_/datasets/coco_instance.py")
    for mode in ("train", "val", "test"):
        steps = {step["type"]: step for step in cfg[f"{mode}_dataloader"]["dataset"]["pipeline"]}
        assert steps["LoadAnnotations"]["with_mask"]
    assert cfg.val_evaluator.metric == cfg.test_evaluator.metric == ["bbox", "segm"]
