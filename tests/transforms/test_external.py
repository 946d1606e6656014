"""The steps of other packages, with stand-ins for the packages."""

import sys
import types

import numpy as np
import pytest
from transforms.squares import assert_boxes_lie_on_squares, squares

from detkit.config.checking import check
from detkit.registry import TRANSFORMS
from detkit.structures import PolygonMasks
from detkit.transforms import Albu, InstaBoost, LoadAnnotations


class Flip:
    """Mirrors pictures, masks and boxes; drops boxes left of a column, but not their masks, as albumentations does."""

    def __init__(self, drop_before=0):
        self.drop_before = drop_before

    def __call__(self, image, bboxes, **others):
        width = image.shape[1]
        out = {"image": image[:, ::-1]}
        if "masks" in others:
            out["masks"] = [mask[:, ::-1] for mask in others["masks"]]
        keep = [i for i, box in enumerate(bboxes) if width - box[2] >= self.drop_before]
        out["bboxes"] = [(width - bboxes[i][2], bboxes[i][1], width - bboxes[i][0], bboxes[i][3]) for i in keep]
        return {**out, "idx_mapper": [others["idx_mapper"][i] for i in keep]}


class Compose:
    def __init__(self, transforms, bbox_params):
        self.transforms, self.params, self.seeds = transforms, bbox_params, []

    def set_random_seed(self, seed):
        self.seeds.append(seed)

    def __call__(self, **data):
        return self.transforms[0](**data)


@pytest.fixture
def albumentations(monkeypatch):
    package = types.ModuleType("albumentations")
    package.Flip, package.Compose, package.BboxParams = Flip, Compose, dict
    package.OneOf = lambda transforms, p=1.0: transforms[0]
    monkeypatch.setitem(sys.modules, "albumentations", package)


PARAMS = {
    "type": "BboxParams",
    "format": "pascal_voc",
    "label_fields": ["gt_bboxes_labels", "gt_ignore_flags"],
    "min_visibility": 0.0,
    "filter_lost_elements": True,
}


@pytest.mark.parametrize("masks", [False, True])
def test_all_fields_follow_what_albumentations_leaves(albumentations, masks):
    step = Albu([{"type": "OneOf", "transforms": [{"type": "Flip", "drop_before": 30}]}], PARAMS)
    assert step.augment.params == {"format": "pascal_voc", "min_visibility": 0.0, "label_fields": ["idx_mapper"]}
    results = step(squares(masks=masks))
    assert results["gt_bboxes_labels"].tolist() == [0, 1, 3]
    assert_boxes_lie_on_squares(results)


def test_its_generator_is_seeded_from_numpys(albumentations):
    step = Albu([{"type": "Flip"}])
    for _ in range(2):
        np.random.seed(4)
        step(squares()), step(squares())
    first, second, *again = step.augment.seeds
    assert [first, second] == again
    assert first != second


def test_an_image_whose_objects_are_gone(albumentations):
    steps = [{"type": "Flip", "drop_before": 200}]
    assert Albu(steps, skip_img_without_anno=True)(squares(masks=True)) is None
    results = Albu(steps)(squares(masks=True))
    assert results["gt_bboxes"].shape == (0, 4)
    assert results["gt_masks"].masks.shape == (0, 64, 96)
    assert Albu(steps)(squares(0, masks=True))["gt_masks"].masks.shape == (0, 64, 96)


def test_what_albumentations_cannot_do_is_told(albumentations):
    with pytest.raises(ValueError, match="albumentations has no 'Flipp'; did you mean 'Flip'"):
        Albu([{"type": "Flipp"}])
    with pytest.raises(ValueError, match="the format 'pascal_voc' was expected, got 'coco'"):
        Albu([], {"format": "coco"})
    with pytest.raises(ValueError, match=r"keymap: .* got \['image'\]"):
        Albu([], keymap={"image": "img"})
    polygons = PolygonMasks([[np.zeros(6)]], 64, 96)
    with pytest.raises(ValueError, match="bitmap masks were expected"):
        Albu([{"type": "Flip"}])({**squares(1), "gt_masks": polygons})
    with pytest.raises(ValueError, match="the image has a segmentation map"):
        Albu([{"type": "Flip"}])({**squares(1), "gt_seg_map": np.zeros((64, 96))})


def test_its_steps_are_not_looked_up_in_a_config():
    step = {"type": "Albu", "transforms": [{"type": "ShiftScaleRotate", "p": 0.5}], "bbox_params": PARAMS}
    dataset = {"type": "CocoDataset", "ann_file": "a.json", "pipeline": [step]}
    check({"train_dataloader": {"batch_size": 1, "dataset": dataset}})


@pytest.mark.parametrize(("name", "package"), [("Albu", "albumentations"), ("InstaBoost", "instaboostfast")])
def test_a_package_that_is_not_installed_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = {"transforms": []} if name == "Albu" else {}
    with pytest.raises(ImportError, match=f"{name} needs the package {package}: pip install {package}"):
        TRANSFORMS.build({"type": name, **arguments})


@pytest.fixture
def instaboostfast(monkeypatch):
    package = types.ModuleType("instaboostfast")
    package.InstaBoostConfig = lambda *settings: settings

    def get_new_data(annotations, img, settings, background):
        moved = []
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            box = [x + 1, y, w, h]
            mask = [[value + (index + 1) % 2 for index, value in enumerate(annotation["segmentation"][0])]]
            moved.append({**annotation, "bbox": box, "segmentation": mask})
        return [*moved, {**moved[0], "bbox": [0, 0, 0, 5]}], np.roll(img, 1, axis=1)

    package.get_new_data = get_new_data
    monkeypatch.setitem(sys.modules, "instaboostfast", package)


def record():
    results = squares(3)
    results["instances"] = [
        {
            "bbox": box.tolist(),
            "bbox_label": index,
            "ignore_flag": int(index == 2),
            "mask": [box[[0, 1, 2, 1, 2, 3, 0, 3]].tolist()],
            "ann_id": 70 + index,
        }
        for index, box in enumerate(results["gt_bboxes"])
    ]
    return results


def test_objects_are_moved_and_ignored_ones_left(instaboostfast):
    results = InstaBoost(aug_ratio=1.0, dx=20)(record())
    boxes = squares(3)["gt_bboxes"]
    boxes[:2, [0, 2]] += 1
    loaded = LoadAnnotations(with_mask=True)({**results, "ori_shape": (64, 96)})
    np.testing.assert_array_equal(loaded["gt_bboxes"], boxes)
    np.testing.assert_array_equal(loaded["gt_masks"].get_bboxes(), boxes)
    assert loaded["gt_ignore_flags"].tolist() == [False, False, True]
    np.testing.assert_array_equal(results["img"], np.roll(squares(3)["img"], 1, axis=1))
    unchanged = InstaBoost(aug_ratio=0.0)(record())
    np.testing.assert_array_equal(unchanged["img"], squares(3)["img"])
    assert unchanged["instances"] == record()["instances"]


def test_instaboost_needs_masks(instaboostfast):
    results = record()
    del results["instances"][1]["mask"]
    with pytest.raises(ValueError, match=r"squares\.png: annotation 71: InstaBoost needs a segmentation"):
        InstaBoost(aug_ratio=1.0)(results)
    with pytest.raises(ValueError, match="action_prob: 1 probabilities for 3 candidates"):
        InstaBoost(action_prob=(1,))
