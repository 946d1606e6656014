"""Open Images' CSV files and the Challenge's text file."""

import json
import pickle

import numpy as np
import pytest

from detkit.registry import DATASETS

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"

KITTEN = {"LabelName": "/m/k"}


def row(image, label, box=(0.1, 0.5, 0.2, 1.0), group=0):
    x1, x2, y1, y2 = box
    return f"{image},xclick,{label},1,{x1},{x2},{y1},{y2},0,0,{group},1,0"


@pytest.fixture
def build(tmp_path):
    files = {
        "names.csv": "/m/a,Animal\n/m/c,Cat\n/m/t,Tree\n/m/k,Kitten\n",
        "tree.json": json.dumps(
            {
                "LabelName": "/m/root",
                "Subcategory": [
                    {
                        "LabelName": "/m/a",
                        "Subcategory": [{"LabelName": "/m/c", "Subcategory": [{"LabelName": "/m/k"}]}],
                    },
                    {"LabelName": "/m/t"},
                ],
            }
        ),
        "boxes.csv": "\n".join([HEADER, row("b7", "/m/c"), row("a1", "/m/t", group=1), row("b7", "/m/k")]),
        "labels.csv": "ImageID,Source,LabelName,Confidence\nb7,verification,/m/t,0\nb7,verification,/m/c,1\n",
        "challenge.txt": "train/b7.jpg\n200\n2\n2 0.1 0.2 0.5 1.0 0\n4 0 0 1 1 1\ntrain/a1.jpg\n200\n0\n",
        "challenge.csv": "/m/t,Tree,3\n/m/a,Animal,1\n/m/c,Cat,2\n/m/k,Kitten,4\n",
        "labels2.csv": "ImageID,LabelName,Confidence\na1,/m/k,1\n",
    }
    metas = [{"filename": f"x/{name}.jpg", "ori_shape": (50, 100, 3)} for name in ("a1", "b7")]

    def dataset(kind="OpenImagesDataset", metas=metas, changed=(), **kwargs):
        for name, text in {**files, **dict(changed)}.items():
            (tmp_path / name).write_text(text)
        (tmp_path / "metas.pkl").write_bytes(pickle.dumps(metas))
        with open(tmp_path / "tree.np", "wb") as file:
            np.save(file, np.pad(np.eye(4), ((1, 0), (1, 0))))
        challenge = kind == "OpenImagesChallengeDataset"
        cfg = {
            "type": kind,
            "data_root": str(tmp_path),
            "data_prefix": {"img": "mem://img"},
            "ann_file": "challenge.txt" if challenge else "boxes.csv",
            "label_file": "challenge.csv" if challenge else "names.csv",
            "hierarchy_file": "tree.np" if challenge else "tree.json",
            "meta_file": "metas.pkl",
        }
        return DATASETS.build({**cfg, **kwargs})

    return dataset


def test_boxes_flags_and_the_tree(build):
    dataset = build(image_level_ann_file="labels.csv")
    assert dataset.metainfo["classes"] == ("Animal", "Cat", "Tree", "Kitten")
    first, second = (dataset.get_data_info(index) for index in range(2))
    assert (first["img_id"], first["width"], first["height"]) == ("b7", 100, 50)
    assert first["img_path"].endswith("img/b7.jpg")
    assert [item["bbox_label"] for item in first["instances"]] == [1, 3]
    assert first["instances"][0]["bbox"] == pytest.approx([10, 10, 50, 50])
    assert [item["is_group_of"] for item in second["instances"]] == [True]
    assert first["instances"][0]["is_depiction"]
    assert first["image_level_labels"].tolist() == [2, 1]
    assert first["confidences"].tolist() == [0, 1]
    assert second["image_level_labels"].tolist() == []
    expected = np.eye(4)
    expected[1, 0] = expected[3, 1] = expected[3, 0] = 1  # a cat is an animal, a kitten both
    np.testing.assert_array_equal(dataset.metainfo["RELATION_MATRIX"], expected)
    assert "image_level_labels" not in build().get_data_info(0)


def test_the_challenge(build):
    dataset = build("OpenImagesChallengeDataset", image_level_ann_file="labels2.csv")
    assert dataset.metainfo["classes"] == ("Animal", "Cat", "Tree", "Kitten")
    first, second = (dataset.get_data_info(index) for index in range(2))
    assert first["img_path"].endswith("img/train/b7.jpg")
    assert first["instances"][0] == {"bbox": [10, 10, 50, 50], "bbox_label": 1, "ignore_flag": 0, "is_group_of": False}
    assert first["instances"][1]["is_group_of"]
    assert second["instances"] == []
    assert second["image_level_labels"].tolist() == [3]
    np.testing.assert_array_equal(dataset.metainfo["RELATION_MATRIX"], np.eye(4))
    with pytest.raises(TypeError, match=r"a text file was expected, got 'boxes\.csv'"):
        build("OpenImagesChallengeDataset", ann_file="boxes.csv")


class Evil:
    def __reduce__(self):
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"changed": {"boxes.csv": f"{HEADER}\n{row('a1', '/m/z')}"}},
            r"boxes\.csv: line 2: the class '/m/z' is not",
        ),
        ({"changed": {"boxes.csv": f"{HEADER}\na1,x,/m/c"}}, r"boxes\.csv: line 2: at least 13 columns were expected"),
        ({"changed": {"boxes.csv": f"{HEADER}\n{row('a1', '/m/c', ('x', 1, 0, 1))}"}}, r"line 2: could not convert"),
        ({"changed": {"boxes.csv": HEADER.replace("XMin", "Left")}}, r"the first line has no XMin"),
        (
            {"changed": {"boxes.csv": f"{HEADER}\n{row('a1', '/m/c', (0.5, 0.5, 0, 1))}"}},
            r"image a1: the box \[0\.5",
        ),
        ({"changed": {"boxes.csv": f"{HEADER}\n{row('c3', '/m/c')}"}}, r"metas\.pkl: has no size of image 'c3'"),
        ({"changed": {"tree.json": "{"}}, r"tree\.json: not JSON"),
        (
            {"changed": {"tree.json": '{"Subcategory": [{"LabelName": "/m/q"}]}'}},
            r"tree\.json: the class '/m/q'",
        ),
        ({"metas": [Evil()]}, r"metas\.pkl: a pickle of a list .* GLOBAL builtins\.eval is not plain data"),
        ({"metas": [{"filename": "a"}]}, r"metas\.pkl: a pickle of a list of dicts with filename and ori_shape"),
    ],
)
def test_what_is_wrong_is_named(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"challenge.txt": "a1.jpg\n1\n2\n1 0 0 1 1 0\n"},
            r"txt: the block at line 1 is broken: the file ends",
        ),
        ({"challenge.txt": "a1.jpg\n1\n1\n9 0 0 1 1 0\n"}, r"the block at line 1 is broken: class 9 of 4"),
        ({"challenge.csv": "/m/t,Tree,3\n/m/a,Animal,1\n"}, r"challenge\.csv: classes numbered 1 to 2 .* got \[1, 3\]"),
        ({"challenge.csv": "/m/t,Tree,1\n"}, r"tree\.np: an array \(2, 2\) was expected"),
    ],
)
def test_what_is_wrong_with_the_challenge_is_named(build, changed, message):
    with pytest.raises(ValueError, match=message):
        build("OpenImagesChallengeDataset", changed=changed)


def test_impossible_boxes_may_be_dropped(build):
    text = "\n".join([HEADER, row("a1", "/m/c", (0.5, 0.5, 0, 1)), row("a1", "/m/c")])
    dataset = build(changed={"boxes.csv": text}, bad_annotations="drop")
    assert len(dataset.get_data_info(0)["instances"]) == 1
    with pytest.raises(FileNotFoundError, match=r"none\.pkl does not exist"):
        build(meta_file="none.pkl")
