"""Data sets that differ from COCO in a detail, several as one, and batches of them."""

import json

import pytest

from detkit.datasets.batch_samplers import is_wide
from detkit.registry import DATASETS

PLACE = "http://images.cocodataset.org/train2017/000000391895.jpg"


def content(*images, names=("cat", "dog"), ids=(1, 2)):
    listed = [
        {"id": 5 + i, "file_name": f"{i}.jpg", "width": 40 - 20 * (i % 2), "height": 30, **image}
        for i, image in enumerate(images)
    ]
    return {
        "images": listed,
        "categories": [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)],
        "annotations": [
            {"id": 100 + i, "image_id": image["id"], "category_id": ids[i % 2], "bbox": [1, 1, 5, 6], "area": 30}
            for i, image in enumerate(listed)
        ],
    }


@pytest.fixture
def build(tmp_path):
    def dataset(kind, value, name="ann.json", **kwargs):
        (tmp_path / name).write_text(json.dumps(value))
        cfg = {"type": kind, "ann_file": name, "data_root": str(tmp_path), "data_prefix": {"img": "mem://img"}}
        return DATASETS.build({**cfg, **kwargs})

    return dataset


def paths(dataset):
    return [dataset.get_data_info(i)["img_path"].rpartition("img/")[2] for i in range(len(dataset))]


@pytest.mark.parametrize("kind", ["LVISV05Dataset", "LVISDataset"])
def test_lvis_v05_drops_the_prefix_of_2014(build, kind):
    value = content({"file_name": "COCO_val2014_000000000139.jpg"}, {"file_name": "000000000200.jpg"})
    assert paths(build(kind, value)) == ["000000000139.jpg", "000000000200.jpg"]


def test_lvis_v1_names_images_by_their_address(build):
    value = content({"coco_url": PLACE})
    del value["images"][0]["file_name"]
    assert paths(build("LVISV1Dataset", value)) == ["train2017/000000391895.jpg"]
    del value["images"][0]["coco_url"]
    with pytest.raises(ValueError, match=r"ann\.json: image 5 has no coco_url"):
        build("LVISV1Dataset", value)


def test_objects365_takes_the_last_folder_and_leaves_broken_images_out(build):
    value = content(
        {"file_name": "images/v1/patch8/a.jpg"}, {"file_name": "images/v2/patch16/objects365_v2_00908726.jpg"}
    )
    dataset = build("Objects365V2Dataset", value)
    assert paths(dataset) == ["patch8/a.jpg"]
    assert dataset.metainfo["classes"] == ("cat", "dog")
    value = content({}, names=("dog", "cat"), ids=(9, 3))  # the file's order is not that of the ids
    assert build("Objects365V1Dataset", value).metainfo["classes"] == ("cat", "dog")


def test_v3det_has_its_classes_in_a_file(build, tmp_path):
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    assert build("V3DetDataset", content({}, {}), label_file="names.txt").metainfo["classes"] == ("dog", "cat")
    with pytest.raises(FileNotFoundError, match=r"name\.txt does not exist .*did you mean 'names\.txt'"):
        build("V3DetDataset", content({}), label_file="name.txt")
    (tmp_path / "names.txt").write_text("dog\ncow\n")
    with pytest.raises(ValueError, match=r"'cow' is not a category of .*ann\.json"):
        build("V3DetDataset", content({}), label_file="names.txt")
    chosen = build("V3DetDataset", content({}), label_file="none.txt", metainfo={"classes": ["cat"]})
    assert chosen.metainfo["classes"] == ("cat",)


def test_cityscapes_counts_crowds_as_nothing(build):
    value = content({"file_name": "aachen/a.png"}, {"file_name": "bonn/b.png"})
    value["annotations"][0]["iscrowd"] = 1
    assert paths(build("CityscapesDataset", value, filter_cfg={"filter_empty_gt": True})) == ["bonn/b.png"]
    assert len(build("CityscapesDataset", value)) == 2
    assert len(build("CocoDataset", value, filter_cfg={"filter_empty_gt": True})) == 2


@pytest.mark.parametrize("kind", ["DeepFashionDataset", "iSAIDDataset"])
def test_classes_are_those_of_the_file(build, kind):
    assert build(kind, content({}, names=("top", "bag"), ids=(1, 7))).metainfo["category_ids"] == (1, 7)


def test_several_as_one(build):
    parts = [build("CocoDataset", content({}, {}), "a.json"), build("CocoDataset", content({}, {}, {}), "b.json")]
    joined = DATASETS.build({"type": "ConcatDataset", "datasets": parts, "ignore_keys": ["dataset_type"]})
    assert len(joined) == 5
    assert joined.metainfo["classes"] == ("cat", "dog")
    assert "ann_file" not in joined.metainfo
    assert [joined.get_cat_ids(i) for i in range(5)] == [[0], [1], [0], [1], [0]]
    assert [joined.get_dataset_source(i) for i in range(5)] == [0, 0, 1, 1, 1]
    assert is_wide(joined).tolist() == [True, False, True, False, True]
    # As a class gets rare, its images are repeated: dogs are in two of five images.
    configs = [{"type": "CocoDataset", "ann_file": part.ann_file, "data_prefix": {"img": "mem://"}} for part in parts]
    inner = {"type": "ConcatDataset", "datasets": configs}
    balanced = DATASETS.build({"type": "ClassBalancedDataset", "dataset": inner, "oversample_thr": 0.9})
    wide = [info["width"] >= info["height"] for info in map(balanced.get_data_info, range(len(balanced)))]
    assert is_wide(balanced).tolist() == wide
    assert len(balanced) > 5


@pytest.mark.parametrize(
    ("names", "message"),
    [(("dog", "cat"), "their order differs"), (("cat", "cow"), "only one has 'cow', 'dog'")],
)
def test_classes_must_mean_the_same(build, names, message):
    parts = [build("CocoDataset", content({}), "a.json"), build("CocoDataset", content({}, names=names), "b.json")]
    with pytest.raises(
        ValueError, match=rf"datasets\[0\] and datasets\[1\] \(.*b\.json\) have other classes: {message}"
    ):
        DATASETS.build({"type": "ConcatDataset", "datasets": parts})
    joined = DATASETS.build({"type": "ConcatDataset", "datasets": parts, "ignore_keys": "classes"})
    assert "classes" not in joined.metainfo


def test_a_part_must_be_a_data_set():
    with pytest.raises(TypeError, match=r"datasets\[0\]: a data set or its config was expected, got 5"):
        DATASETS.build({"type": "ConcatDataset", "datasets": [5]})
    with pytest.raises(ValueError, match="at least one data set"):
        DATASETS.build({"type": "ConcatDataset", "datasets": []})
