"""COCO files: any ids, classes by name, faults named."""

import json
import logging
import os
import re

import cv2
import numpy as np
import pytest

from detkit.datasets import CocoDataset

# (image, category name, box): images 0 to 3 of 40 x 30, the last one empty.
OBJECTS = [
    (0, "cat", [2, 3, 10, 12]),
    (0, "dog", [20, 5, 8, 9]),
    (1, "owl", [1.5, 2.5, 5, 5]),
    (2, "dog", [-3, 4, 10, 10]),
]
NAMES = ("cat", "dog", "owl")


def content(ids=(1, 2, 3), names=NAMES):
    of = dict(zip(names, ids, strict=True))
    return {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(4)],
        "categories": [{"id": i, "name": name} for name, i in of.items()],
        "annotations": [
            {"id": 100 + n, "image_id": 10 + i, "category_id": of[name], "bbox": list(box), "iscrowd": 0, "area": 1}
            for n, (i, name, box) in enumerate(OBJECTS)
        ],
    }


@pytest.fixture
def make(tmp_path):
    """A dataset of some COCO content in a folder with images."""
    (tmp_path / "img").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "img" / f"{i}.png"), np.full((30, 40, 3), i, dtype=np.uint8))

    def build(value=None, **kwargs):
        text = value if isinstance(value, str) else json.dumps(content() if value is None else value)
        (tmp_path / "ann.json").write_text(text)
        arguments = {"ann_file": "ann.json", "data_root": str(tmp_path), "data_prefix": {"img": "img"}, **kwargs}
        return CocoDataset(**arguments)

    return build


def objects(dataset):
    """(image id, class name, box) of everything the dataset gives, in its order."""
    names = dataset.metainfo["classes"]
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(info["img_id"], names[o["bbox_label"]], o["bbox"]) for info in infos for o in info["instances"]]


EXPECTED = [(10 + i, name, [x, y, x + w, y + h]) for i, name, (x, y, w, h) in OBJECTS]


@pytest.mark.parametrize("ids", [(0, 1, 2), (1, 2, 3), (7, 3, 90)])
def test_any_ids_give_the_right_names(make, ids):
    dataset = make(content(ids))
    by_id = sorted(zip(ids, NAMES, strict=True))
    assert dataset.metainfo["classes"] == tuple(name for _, name in by_id)
    assert dataset.metainfo["category_ids"] == tuple(i for i, _ in by_id)
    assert objects(dataset) == EXPECTED


@pytest.mark.parametrize("ids", [(0, 1, 2), (7, 3, 90)])
def test_a_class_list_keeps_the_users_order(make, ids):
    dataset = make(content(ids), metainfo={"classes": ["owl", "cat", "dog"]})
    assert dataset.metainfo["classes"] == ("owl", "cat", "dog")
    assert dataset.metainfo["category_ids"] == (ids[2], ids[0], ids[1])
    assert objects(dataset) == EXPECTED
    assert dataset.get_cat_ids(0) == [1, 2]


def test_a_subset_of_classes_leaves_the_others_out(make):
    dogs = [entry for entry in EXPECTED if entry[1] == "dog"]
    lines = logged(lambda: objects(make(metainfo={"classes": ("dog",)})), dogs)
    assert any("2 annotations of categories that are not in the class list left out" in line for line in lines)
    dataset = make(metainfo={"classes": ("dog",)})
    assert [dataset.get_cat_ids(i) for i in range(4)] == [[0], [], [0], []]


def test_metainfo_names_the_file(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = make(data_root="", ann_file="ann.json", metainfo={"palette": [(1, 2, 3)] * 3})
    assert dataset.metainfo["ann_file"] == str(tmp_path / "ann.json")
    assert dataset.metainfo["palette"] == [(1, 2, 3)] * 3


@pytest.mark.parametrize(
    ("metainfo", "error", "message"),
    [
        ({"classes": ("cat", "dgo")}, ValueError, r"'dgo' is not a category of .*ann\.json; did you mean 'dog'"),
        ({"classes": ()}, ValueError, "no classes"),
        ({"classes": ("cat", "cat")}, ValueError, "'cat' occurs more than once"),
        ({"classes": (1, 2)}, TypeError, "a list of class names was expected"),
        ({"CLASSES": ("cat",)}, KeyError, r"metainfo\.CLASSES: unknown key; did you mean 'classes'"),
    ],
)
def test_a_wrong_class_list(make, metainfo, error, message):
    with pytest.raises(error, match=message):
        make(metainfo=metainfo)


def test_crowd_regions_are_ignored_regions_and_masks_are_kept(make):
    value = content()
    rle = {"size": [30, 40], "counts": [0, 1200]}
    value["annotations"][1] |= {"iscrowd": 1, "segmentation": rle}
    instances = make(value).get_data_info(0)["instances"]
    assert [o["ignore_flag"] for o in instances] == [0, 1]
    assert "mask" not in instances[0]
    assert instances[1]["mask"] == rle


def test_small_and_ignored_annotations_are_left_out_and_counted(make):
    value = content()
    value["annotations"][0]["bbox"][2] = 0.5
    value["annotations"][1]["ignore"] = 1
    lines = logged(lambda: objects(make(value)), EXPECTED[2:])
    assert any("1 annotation marked 'ignore' left out" in line for line in lines)
    assert any("1 annotation narrower or lower than one pixel left out" in line for line in lines)


def logged(call, expected):
    """Lines on mmengine's current logger while ``call`` gives ``expected``."""
    from mmengine.logging import MMLogger

    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        assert call() == expected
    finally:
        logger.removeHandler(handler)
    return lines


@pytest.mark.parametrize(
    ("filter_cfg", "test_mode", "ids", "counts"),
    [
        (None, False, [10, 11, 12, 13], "3 with objects, 1 empty kept, 0 dropped (empty), 0 dropped (min_size)"),
        ({"filter_empty_gt": True}, False, [10, 11, 12], "3 with objects, 0 empty kept, 1 dropped (empty)"),
        ({"min_size": 30}, False, [10, 11, 12, 13], "1 empty kept, 0 dropped (empty), 0 dropped (min_size)"),
        ({"min_size": 31}, False, [10], "1 with objects, 0 empty kept, 0 dropped (empty), 3 dropped (min_size)"),
        ({"filter_empty_gt": True, "min_size": 31}, True, [10, 11, 12, 13], "1 empty kept, 0 dropped"),
    ],
)
def test_filtering_says_what_it_does(make, filter_cfg, test_mode, ids, counts):
    value = content()
    value["images"][0]["height"] = 31
    lines = logged(
        lambda: [
            info["img_id"]
            for dataset in [make(value, filter_cfg=filter_cfg, test_mode=test_mode)]
            for info in map(dataset.get_data_info, range(len(dataset)))
        ],
        ids,
    )
    (line,) = [line for line in lines if " images: " in line]
    assert line.endswith(counts) or counts in line
    assert "ann.json: 4 images: " in line


def test_an_image_emptied_by_the_class_list_is_empty(make):
    # MMDetection keeps image 10 if any of its annotations has a wanted class, before it drops bad boxes.
    value = content()
    value["annotations"][2]["bbox"] = [1, 1, 0.5, 0.5]
    dataset = make(value, metainfo={"classes": ("owl", "cat")}, filter_cfg={"filter_empty_gt": True})
    assert [dataset.get_data_info(i)["img_id"] for i in range(len(dataset))] == [10]


def test_no_image_left_is_an_error(make):
    with pytest.raises(ValueError, match=r"ann\.json: no image is left of 4 .*'min_size': 50"):
        make(filter_cfg={"min_size": 50})


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 5, 0, 4], "has width 0"),
        ([5, 5, 4, 0], "has height 0"),
        ([20, 5, -10, 4], r"has width -10; is it x1, y1, x2, y2\?"),
        ([40, 5, 4, 4], "is outside its image of 40 x 30"),
        ([-5, 5, 5, 4], "is outside its image"),
        ([5, 30, 4, 4], "is outside its image"),
        ([5, -9, 4, 4], "is outside its image"),
        ([float("nan"), 5, 4, 4], "is not finite"),
        ([5, 5, float("inf"), 4], "is not finite"),
        ([5, 5, 4], "a box .* was expected"),
        (["5", 5, 4, 4], "a box .* was expected"),
        (None, "a box .* was expected, got None"),
    ],
)
def test_an_impossible_box_names_file_and_annotation(make, box, message):
    value = content()
    value["annotations"][1]["bbox"] = box
    with pytest.raises(ValueError, match=rf"ann\.json: 1 bad annotation: annotation 101 \(image 10\): .*{message}"):
        make(value)
    kept = [EXPECTED[0], *EXPECTED[2:]]
    lines = logged(lambda: objects(make(value, bad_annotations="drop")), kept)
    assert any("annotation 101" in line and "dropped" in line for line in lines)


@pytest.mark.parametrize("box", [[-4.9, 5, 5, 4], [39.5, 29.5, 9, 9], [0, 0, 40, 30]])
def test_a_box_partly_outside_is_kept_as_it_is(make, box):
    value = content()
    value["annotations"][1]["bbox"] = box
    assert objects(make(value))[1][2] == [box[0], box[1], box[0] + box[2], box[1] + box[3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 100}, "annotation 100: its id occurs more than once"),
        ({"image_id": 99}, "annotation 101: the file has no image 99"),
        ({"category_id": 9}, "annotation 101: the file has no category 9"),
        ({"image_id": [10]}, "a number was expected as image_id"),
    ],
)
def test_an_annotation_with_a_wrong_reference(make, change, message):
    value = content()
    value["annotations"][1] |= change
    with pytest.raises(ValueError, match=rf"ann\.json: .*{message}.* bad_annotations='drop'"):
        make(value)
    assert objects(make(value, bad_annotations="drop")) == [EXPECTED[0], *EXPECTED[2:]]


def test_bad_annotations_are_counted_and_the_first_told(make):
    value = content()
    value["annotations"] += [{"id": 200 + i, "image_id": 10, "category_id": 1, "bbox": [1, 1, 0, 5]} for i in range(7)]
    with pytest.raises(ValueError, match=r"7 bad annotations: annotation 200 .*annotation 204 .*; and 2 more") as info:
        make(value)
    assert "205" not in str(info.value)


def test_boxes_relative_to_the_image_are_noticed(make):
    value = content()
    for annotation in value["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(ValueError, match=r"all 4 boxes lie within the first pixel; COCO boxes are .* in pixels"):
        make(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "not a COCO file: .*'?images.*found a JSON list"),
        ({"images": [], "categories": []}, ".*without a list under annotations"),
        ({"images": {}, "categories": [], "annotations": []}, ".*without a list under images"),
        ('{"images": [{"id": 1, "file_n', "not JSON, or cut off: .*line 1"),
        ("<annotation>", "not JSON, or cut off"),
        ("", "not JSON, or cut off"),
    ],
)
def test_json_that_is_not_coco(make, value, message):
    with pytest.raises(ValueError, match=rf"ann\.json: {message}"):
        make(value)


def test_a_binary_file_is_not_coco(make, tmp_path):
    (tmp_path / "ann.bin").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"ann\.bin: not JSON"):
        make(ann_file="ann.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].pop("width"), "image 11 has no width"),
        (lambda c: c["images"][1].update(width="40"), "image 11: width and height in pixels were expected, got '40'"),
        (lambda c: c["images"][1].update(width=0), "image 11: width and height"),
        (lambda c: c["images"][1].update(id=10), "the image id 10 occurs more than once"),
        (lambda c: c["images"].append(7), "image number 4 has no id"),
        (lambda c: c["categories"][1].update(id=1), "the category id 1 occurs more than once"),
        (lambda c: c["categories"][1].update(name="cat"), "two categories have the same name"),
        (lambda c: c["categories"][1].pop("name"), "category 2 has no name"),
    ],
)
def test_broken_images_and_categories(make, change, message):
    value = content()
    change(value)
    with pytest.raises(ValueError, match=rf"ann\.json: {message}"):
        make(value)


def test_a_test_set_needs_no_annotations(make):
    value = content()
    del value["annotations"]
    assert len(make(value, test_mode=True)) == 4


def test_a_missing_annotation_file_says_where_it_was_looked_for(make, tmp_path):
    make()
    where = re.escape(str(tmp_path / "an.json"))
    with pytest.raises(
        FileNotFoundError, match=rf"{where} does not exist .*ann_file='an.json'.*did you mean 'ann.json'"
    ):
        make(ann_file="an.json")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        make(data_root=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="ann_file: the path of a COCO JSON file was expected"):
        make(ann_file="")


def test_a_wrong_image_folder_fails_at_once(make):
    with pytest.raises(FileNotFoundError, match=r"imgs.0\.png: image 10 of .*data_prefix=\{'img': 'imgs'\}"):
        make(data_prefix={"img": "imgs"})


@pytest.mark.parametrize(("gone", "also"), [([4], ""), ([1, 2, 3, 4], r", 4 of 6 images .*2\.png, \S*3\.png, …")])
def test_missing_images_are_named_at_the_start(make, tmp_path, gone, also):
    value = content()
    value["images"] = [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(6)]
    for i in range(6):
        cv2.imwrite(str(tmp_path / "img" / f"{i}.png"), np.zeros((30, 40, 3), dtype=np.uint8))
    for i in gone:
        (tmp_path / "img" / f"{i}.png").unlink()
    dataset = make(value, lazy_init=True)
    message = rf"{gone[0]}\.png: image {10 + gone[0]} of .*ann\.json does not exist{also}; .*data_prefix"
    with pytest.raises(FileNotFoundError, match=message):
        dataset.full_init()
    with pytest.raises(FileNotFoundError, match=message):
        make(value)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"filter_cfg": {"filter_empty": True}}, KeyError, r"filter_cfg\.filter_empty: .*'filter_empty_gt'"),
        ({"data_prefix": {"imgs": ""}}, KeyError, r"data_prefix\.imgs: .*'img'"),
        ({"bad_annotations": "ignore"}, ValueError, "bad_annotations: 'raise' or 'drop' was expected, got 'ignore'"),
    ],
)
def test_wrong_arguments(make, kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_absolute_and_nested_file_names(make, tmp_path):
    value = content()
    os.makedirs(tmp_path / "img" / "sub")
    os.rename(tmp_path / "img" / "1.png", tmp_path / "img" / "sub" / "1.png")
    value["images"][1]["file_name"] = "sub/1.png"
    value["images"][2]["file_name"] = str(tmp_path / "img" / "2.png")
    dataset = make(value)
    assert [os.path.isfile(dataset.get_data_info(i)["img_path"]) for i in range(4)] == [True] * 4
