"""Mosaic and MixUp on pictures whose objects can be found again."""

import numpy as np
import pytest
from transforms.squares import COLOURS, assert_boxes_lie_on_squares, found, squares

from detkit.transforms import CachedMixUp, MixUp, Mosaic


def one_square(label, masks=True, shape=(64, 96)):
    """A picture with one of the objects only."""
    results = squares(4, masks, shape)
    others = (results["img"] != COLOURS[label]).any(axis=-1)
    results["img"][others] = 0
    for key in ("gt_bboxes", "gt_bboxes_labels", "gt_ignore_flags", "gt_masks"):
        if key in results:
            results[key] = results[key][np.array([label])]
    return results


@pytest.mark.parametrize("masks", [False, True])
def test_mosaic_moves_boxes_and_masks_with_their_objects(masks):
    seen = 0
    for seed in range(15):
        np.random.seed(seed)
        first, *others = (one_square(label, masks) for label in range(4))
        results = Mosaic(img_scale=(80, 60), pad_val=0)({**first, "mix_results": others})
        assert results["img"].shape == (120, 160, 3)
        assert_boxes_lie_on_squares(results, tolerance=1.6)
        seen += len(results["gt_bboxes"])
        for other, label in zip(others, (1, 2, 3), strict=True):
            np.testing.assert_array_equal(other["gt_bboxes"], one_square(label)["gt_bboxes"])
    assert seen > 40


def test_the_four_images_of_a_mosaic_meet_in_the_drawn_point():
    np.random.seed(0)
    images = [{**squares(0), "img": np.full((60, 80, 3), value, np.uint8)} for value in (1, 2, 3, 4)]
    canvas = Mosaic(img_scale=(80, 60))({**images[0], "mix_results": images[1:]})["img"]
    np.random.seed(0)
    np.random.uniform()  # whether at all
    x, y = int(np.random.uniform(0.5, 1.5) * 80), int(np.random.uniform(0.5, 1.5) * 60)
    assert [canvas[r, c, 0] for r, c in ((y - 1, x - 1), (y - 1, x), (y, x - 1), (y, x))] == [1, 2, 3, 4]
    assert set(np.unique(canvas)) == {1, 2, 3, 4, 114}


def test_mosaic_with_a_probability_of_zero_leaves_the_image():
    results = Mosaic(prob=0.0)({**squares(), "mix_results": [squares()] * 3})
    np.testing.assert_array_equal(results["img"], squares()["img"])


@pytest.mark.parametrize("masks", [False, True])
def test_mixup_moves_boxes_and_masks_with_their_objects(masks):
    mixed = 0
    for seed in range(15):
        np.random.seed(seed)
        # The other's object is at the top, or at the bottom, whence a shift brings it into the image.
        number = 1 if seed % 2 else 3
        first, other = one_square(0, masks), one_square(number, masks)
        results = MixUp(img_scale=(96, 64), pad_val=0)({**first, "mix_results": [other]})
        assert results["img"].shape == (64, 96, 3)
        np.testing.assert_array_equal(results["gt_bboxes"][0], first["gt_bboxes"][0])
        boxes = results["gt_bboxes"]
        covered = len(boxes) == 2 and (np.minimum(*boxes[:, 2:]) > np.maximum(*boxes[:, :2])).all()
        for index, (box, label) in enumerate(zip(boxes, results["gt_bboxes_labels"], strict=True)):
            if (box[2:] - box[:2]).min() < 3:
                continue
            if not covered:  # of two colours over each other neither would be found
                np.testing.assert_allclose(found(results["img"], label, weight=0.5), box, atol=1.6)
                mixed += label == number
            if masks:
                rows, columns = np.nonzero(results["gt_masks"].masks[index])
                mask_box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(mask_box, box, atol=1.6)
    assert mixed > 5


def test_flip_ratio_is_the_probability_to_flip():
    step = MixUp(img_scale=(96, 64), ratio_range=(1, 1), flip_ratio=0.0, pad_val=0)
    np.random.seed(0)
    for _ in range(5):
        results = step({**squares(0), "mix_results": [one_square(0, masks=False)]})
        np.testing.assert_array_equal(results["gt_bboxes"], squares(1)["gt_bboxes"])
    step.flip_ratio = 1.0
    results = step({**squares(0), "mix_results": [one_square(0, masks=False)]})
    np.testing.assert_array_equal(results["gt_bboxes"], [[70, 8, 90, 20]])


def test_an_image_without_objects_is_not_mixed_in():
    results = MixUp()({**squares(), "mix_results": [squares(0)]})
    np.testing.assert_array_equal(results["img"], squares()["img"])


def test_mixup_looks_for_an_image_with_objects_in_the_records():
    class Dataset:
        def __len__(self):
            return 10

        def get_data_info(self, index):
            return {"instances": [{}] if index == 7 else []}

    np.random.seed(0)
    assert [MixUp(max_iters=500).get_indexes(Dataset()) for _ in range(5)] == [7] * 5
    assert len({MixUp(max_iters=1).get_indexes(Dataset()) for _ in range(30)}) > 3


def test_float_images_stay_so():
    np.random.seed(0)
    images = [{**squares(), "img": squares()["img"].astype(np.float32)} for _ in range(4)]
    assert Mosaic(img_scale=(80, 60))({**images[0], "mix_results": images[1:]})["img"].dtype == np.float32
    assert MixUp(img_scale=(80, 60))({**images[0], "mix_results": images[1:2]})["img"].dtype == np.float32


def test_without_other_images_it_is_said_where_they_come_from():
    with pytest.raises(ValueError, match="Mosaic: 3 other images were expected in 'mix_results', got 0"):
        Mosaic()(squares())
    with pytest.raises(ValueError, match="CachedMixUp: 1 other images were expected"):
        CachedMixUp()(squares())


def test_masks_on_one_side_only_are_refused():
    with pytest.raises(ValueError, match="gt_masks: an image that is mixed in does not have it"):
        Mosaic()({**squares(masks=True), "mix_results": [squares()] * 3})


@pytest.mark.parametrize(("step", "others"), [(Mosaic, 3), (MixUp, 1)])
def test_segmentation_maps_are_refused(step, others):
    results = {**squares(), "gt_seg_map": np.zeros((64, 96), dtype=np.uint8), "mix_results": [squares()] * others}
    with pytest.raises(ValueError, match=f"{step.__name__} mixes boxes and masks, and the image has a segmentation"):
        step()(results)


@pytest.mark.parametrize(("step", "others"), [(Mosaic, 3), (MixUp, 1)])
def test_an_error_behind_it_names_no_annotation_of_the_first_image(step, others):
    results = {**squares(), "instances": [{"ann_id": 5}], "mix_results": [squares()] * others}
    assert "instances" not in step()(results)
