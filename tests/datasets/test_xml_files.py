"""PASCAL VOC's XML files and WIDER Face's."""

import cv2
import numpy as np
import pytest

from detkit.registry import DATASETS


def obj(name="cat", box=(2, 3, 12, 15), difficult=None):
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    mark = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{mark}<bndbox>{corners}</bndbox></object>"


def xml(*objects, size=(40, 30), folder="x"):
    sides = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><folder>{folder}</folder>{sides}{''.join(objects)}</annotation>"


@pytest.fixture
def build(tmp_path):
    """A data set of some XML texts in VOC's folders."""
    root = tmp_path / "VOC2007"
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()

    def dataset(*texts, kind="VOCDataset", **kwargs):
        for index, text in enumerate(texts):
            (root / "Annotations" / f"{index:06d}.xml").write_text(text)
            cv2.imwrite(str(root / "JPEGImages" / f"{index:06d}.jpg"), np.zeros((30, 40, 3), np.uint8))
        (root / "list.txt").write_text("".join(f"{index:06d}\n" for index in range(len(texts))))
        cfg = {"type": kind, "data_root": str(tmp_path), "ann_file": "VOC2007/list.txt"}
        return DATASETS.build({**cfg, "data_prefix": {"sub_data_root": "VOC2007/"}, **kwargs})

    return dataset


def instances(dataset):
    return [
        (dataset.metainfo["classes"][o["bbox_label"]], o["bbox"], o["ignore_flag"])
        for index in range(len(dataset))
        for o in dataset.get_data_info(index)["instances"]
    ]


def test_boxes_count_from_one_and_difficult_ones_are_ignored(build, tmp_path):
    dataset = build(xml(obj(), obj("dog", (1, 1, 40, 30.0), 1), obj("zebra")), xml(obj("dog", difficult=0)))
    assert instances(dataset) == [("cat", [1, 2, 11, 14], 0), ("dog", [0, 0, 39, 29], 1), ("dog", [1, 2, 11, 14], 0)]
    info = dataset.get_data_info(0)
    assert info["img_path"] == str(tmp_path / "VOC2007" / "JPEGImages" / "000000.jpg")
    assert (info["img_id"], info["width"], info["height"]) == ("000000", 40, 30)
    assert dataset.metainfo["dataset_type"] == "VOC2007"
    assert len(dataset.metainfo["classes"]) == 20


def test_classes_of_ones_own_and_a_size_that_is_not_stated(build):
    dataset = build(xml(obj("zebra"), size=None), kind="XMLDataset", metainfo={"classes": ["zebra"]})
    assert instances(dataset) == [("zebra", [1, 2, 11, 14], 0)]
    assert dataset.image_sizes.tolist() == [[40, 30]]
    with pytest.raises(ValueError, match=r"list\.txt: XML files list no classes"):
        build(xml(), kind="XMLDataset")


def test_small_boxes_are_ignored_in_training_only(build):
    texts = [xml(obj(), obj("dog", (1, 1, 30, 30))), xml()]
    kept = build(*texts, filter_cfg={"filter_empty_gt": True, "min_size": 20, "bbox_min_size": 12})
    assert [flag for *_, flag in instances(kept)] == [1, 0]
    assert len(kept) == 1
    tested = build(*texts, filter_cfg={"bbox_min_size": 12}, test_mode=True)
    assert [flag for *_, flag in instances(tested)] == [0, 0]


BAD = [
    (obj(box=(12, 3, 2, 15)), r"object 2: the box \[11, 2, -10, 12\] has width -10"),
    (obj(box=(2, "a", 12, 15)), r"object 2: xmin, ymin, xmax, ymax were expected, got \['2', 'a', '12', '15'\]"),
    (obj(box=(2, 3, 12, "inf")), r"object 2: xmin, ymin, xmax, ymax were expected"),
    (obj(box=(50, 3, 60, 15)), r"object 2: the box .* is outside its image of 40 x 30"),
    ("<object><name>cat</name></object>", r"object 2: xmin, ymin, xmax, ymax were expected, got \[None"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_an_impossible_box_names_file_and_object(build, bad, message):
    with pytest.raises(ValueError, match=rf"list\.txt: 1 bad boxes: .*000000\.xml: {message}"):
        build(xml(obj(), bad))
    assert len(instances(build(xml(obj(), bad), bad_annotations="drop"))) == 1


def test_flat_boxes_are_left_out(build):
    assert instances(build(xml(obj(box=(4, 4, 4, 9)), obj()))) == [("cat", [1, 2, 11, 14], 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", r"000000\.xml: not XML, or cut off"),
        (xml(size=(0, 30)), r"000000\.xml: width and height in pixels were expected, got '0' and '30'"),
        (xml(size=("a", 30)), r"got 'a' and '30'"),
    ],
)
def test_a_broken_file_is_named(build, text, message):
    with pytest.raises(ValueError, match=message):
        build(text)


def test_missing_files_are_named(build, tmp_path):
    build(xml(obj()))
    (tmp_path / "VOC2007" / "Annotations" / "000000.xml").rename(tmp_path / "VOC2007" / "Annotations" / "000001.xml")
    cfg = {"type": "VOCDataset", "data_root": str(tmp_path), "data_prefix": {"sub_data_root": "VOC2007"}}
    with pytest.raises(FileNotFoundError, match=r"000000\.xml does not exist .*did you mean '000001\.xml'"):
        DATASETS.build({**cfg, "ann_file": "VOC2007/list.txt"})
    with pytest.raises(FileNotFoundError, match=r"lists\.txt does not exist .*did you mean 'list\.txt'"):
        DATASETS.build({**cfg, "ann_file": "VOC2007/lists.txt"})
    with pytest.raises(ValueError, match="bad_annotations: 'raise' or 'drop' was expected, got 'skip'"):
        DATASETS.build({**cfg, "ann_file": "VOC2007/list.txt", "bad_annotations": "skip"})


def test_wider_face_counts_from_zero_and_has_folders(tmp_path):
    root = tmp_path / "WIDER_train"
    (root / "Annotations").mkdir(parents=True)
    (root / "0--Parade").mkdir()
    (root / "Annotations" / "a.xml").write_text(xml(obj("face"), folder="0--Parade"))
    (root / "0--Parade" / "a.jpg").write_bytes(b"x")
    (tmp_path / "train.txt").write_text("a\n")
    cfg = {"type": "WIDERFaceDataset", "data_root": str(tmp_path), "ann_file": "train.txt"}
    dataset = DATASETS.build({**cfg, "data_prefix": {"img": "WIDER_train"}})
    assert instances(dataset) == [("face", [2, 3, 12, 15], 0)]
    assert dataset.get_data_info(0)["img_path"].endswith("WIDER_train/0--Parade/a.jpg")
