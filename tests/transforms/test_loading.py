"""Loading images and annotations into a results dict."""

import json
import re

import cv2
import numpy as np
import pytest

from detkit.datasets import CocoDataset
from detkit.registry import TRANSFORMS
from detkit.transforms import FilterAnnotations, LoadAnnotations, LoadImageFromFile, LoadImageFromNDArray


@pytest.fixture
def image(tmp_path):
    """A 40 x 30 picture on disk and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    return str(tmp_path / "a.png"), pixels


def test_an_image_is_bgr_uint8(image):
    path, pixels = image
    results = LoadImageFromFile()({"img_path": path})
    np.testing.assert_array_equal(results["img"], pixels)
    assert results["img"].dtype == np.uint8
    assert results["img_shape"] == results["ori_shape"] == (30, 40)


def test_float_and_grey_images(image):
    path, pixels = image
    img = LoadImageFromFile(to_float32=True)({"img_path": path})["img"]
    assert img.dtype == np.float32
    np.testing.assert_array_equal(img, pixels)
    grey = LoadImageFromFile(color_type="grayscale")({"img_path": path})["img"]
    np.testing.assert_array_equal(grey, cv2.imread(path, cv2.IMREAD_GRAYSCALE))


def test_a_size_that_disagrees_with_the_annotations_names_both(image):
    path, _ = image
    message = (
        rf"^{re.escape(path)}: the image file has 40 x 30 pixels \(width x height\), its annotation says 41 x 30: "
    )
    message += "correct width and height in the annotation file$"
    with pytest.raises(ValueError, match=message):
        LoadImageFromFile()({"img_path": path, "height": 30, "width": 41})
    with pytest.raises(ValueError, match=r"says 30 x 40: correct width and height .*EXIF.*'color_ignore_orientation'"):
        LoadImageFromFile()({"img_path": path, "height": 40, "width": 30})
    assert LoadImageFromFile()({"img_path": path, "height": 30, "width": 40})["img_shape"] == (30, 40)


def test_an_image_that_cannot_be_loaded_is_skipped_only_on_request(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    for name in ("a.jpg", "b.jpg"):
        results = {"img_path": str(tmp_path / name)}
        with pytest.raises((ValueError, FileNotFoundError), match=name):
            LoadImageFromFile()(dict(results))
        assert LoadImageFromFile(ignore_empty=True)(dict(results)) is None


def test_a_dataset_raises_the_loaders_error(tmp_path, image):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 31}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "ann.json").write_text(json.dumps(content))
    dataset = CocoDataset(ann_file="ann.json", data_root=str(tmp_path), pipeline=[{"type": "LoadImageFromFile"}])
    with pytest.raises(ValueError, match=r"^/.*a\.png: .* says 40 x 31: "):
        dataset[0]


def test_an_unknown_colour_type_is_refused():
    with pytest.raises(ValueError, match=r"color_type: one of color, grayscale, .* was expected, got 'rgb'"):
        LoadImageFromFile(color_type="rgb")


def test_an_image_in_memory():
    img = np.zeros((5, 7, 3), dtype=np.uint8)
    results = LoadImageFromNDArray(to_float32=True)({"img": img})
    assert results["img"].dtype == np.float32
    assert results["img_path"] is None
    assert results["img_shape"] == results["ori_shape"] == (5, 7)
    with pytest.raises(ValueError, match=r"an image array \(H, W, 3\) was expected, got \(0, 7, 3\)"):
        LoadImageFromNDArray()({"img": img[:0]})
    with pytest.raises(ValueError, match=r"an image array .* was expected, got str"):
        LoadImageFromNDArray()({"img": "a.jpg"})


def instance(mask=None, **kwargs):
    entry = {"bbox": [1, 2, 5, 6], "bbox_label": 2, "ignore_flag": 0, "ann_id": 77, **kwargs}
    return entry if mask is None else {**entry, "mask": mask}


def record(*instances):
    return {"img_path": "dir/a.jpg", "height": 10, "width": 12, "instances": list(instances)}


def test_boxes_labels_and_flags():
    results = LoadAnnotations()(record(instance(), instance(bbox=[0.1, 0, 3, 4], bbox_label=0, ignore_flag=1)))
    np.testing.assert_array_equal(results["gt_bboxes"], np.float32([[1, 2, 5, 6], [0.1, 0, 3, 4]]))
    assert results["gt_bboxes"].dtype == np.float32
    np.testing.assert_array_equal(results["gt_bboxes_labels"], [2, 0])
    assert results["gt_bboxes_labels"].dtype == np.int64
    np.testing.assert_array_equal(results["gt_ignore_flags"], [False, True])


SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]


@pytest.mark.parametrize("counts", [[13, 2, 105], b"=2Y3", "=2Y3"])
def test_run_lengths_plain_and_compressed(counts):
    # 13 zeros down the columns of 10 rows, then 2 ones: rows 3 and 4 of column 1.
    results = LoadAnnotations(with_mask=True)(record(instance({"size": [10, 12], "counts": counts})))
    expected = np.zeros((1, 10, 12))
    expected[0, 3:5, 1] = 1
    np.testing.assert_array_equal(results["gt_masks"].masks, expected)
    assert not results["gt_ignore_flags"][0]


def test_a_broken_mask_makes_an_ignored_object_and_leaves_the_record_alone():
    entry = record(instance([[1, 1, 2, 2]]), instance([SQUARE, [3, 3]]), instance({"counts": None, "size": [10, 12]}))
    results = LoadAnnotations(with_mask=True)(entry)
    np.testing.assert_array_equal(results["gt_ignore_flags"], [True, False, True])
    np.testing.assert_array_equal(results["gt_masks"].areas, [0, 9, 0])
    assert [o["ignore_flag"] for o in entry["instances"]] == [0, 0, 0]


def test_a_missing_or_foreign_mask_names_image_and_annotation():
    with pytest.raises(ValueError, match=r"^dir/a\.jpg: annotation 77: no segmentation, but with_mask=True"):
        LoadAnnotations(with_mask=True)(record(instance()))
    rle = {"size": [12, 10], "counts": [120]}
    with pytest.raises(ValueError, match=r"^dir/a\.jpg: annotation 77: .* 10 x 12 .* this one has 12 x 10"):
        LoadAnnotations(with_mask=True)(record(instance(rle)))


def test_segmentation_maps(tmp_path):
    seg_map = np.array([[0, 1, 2], [255, 1, 0]], dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "seg.png"), seg_map)
    results = {"seg_map_path": str(tmp_path / "seg.png")}
    plain = LoadAnnotations(with_bbox=False, with_label=False, with_seg=True)(dict(results))
    np.testing.assert_array_equal(plain["gt_seg_map"], seg_map)
    assert set(plain) == {"seg_map_path", "gt_seg_map", "ignore_index"}
    reduced = LoadAnnotations(with_seg=True, reduce_zero_label=True)(dict(results))
    np.testing.assert_array_equal(reduced["gt_seg_map"], [[255, 0, 1], [255, 0, 255]])


def test_wrong_arguments_of_loading_and_filtering():
    with pytest.raises(ValueError, match="box_type: 'hbox' or None was expected, got 'rbox'"):
        LoadAnnotations(box_type="rbox")
    with pytest.raises(ValueError, match="by_box, by_mask: at least one must be True"):
        FilterAnnotations(by_box=False)
    with pytest.raises(TypeError, match="LoadAnnotations has no argument 'with_masks'; did you mean 'with_mask'"):
        TRANSFORMS.build({"type": "LoadAnnotations", "with_masks": True})


def test_filtering_keeps_every_field_aligned():
    results = LoadAnnotations(with_mask=True)(
        record(instance([SQUARE], bbox=[0, 0, 3, 9]), instance([SQUARE], bbox=[0, 0, 4, 4], bbox_label=1))
    )
    kept = FilterAnnotations(min_gt_bbox_wh=(3, 3))(dict(results))
    np.testing.assert_array_equal(kept["gt_bboxes"], [[0, 0, 4, 4]])  # 3 is not more than 3
    np.testing.assert_array_equal(kept["gt_bboxes_labels"], [1])
    assert len(kept["gt_masks"]) == len(kept["gt_ignore_flags"]) == 1
    by_mask = {"by_box": False, "by_mask": True}
    assert len(FilterAnnotations(min_gt_mask_area=9, **by_mask)(dict(results))["gt_bboxes"]) == 2
    assert FilterAnnotations(min_gt_mask_area=10, **by_mask)(dict(results)) is None
