import hashlib
import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from numpy.random import RandomState
from PIL import Image
from pycocotools import mask as rle

from detkit.datasets.shapes import CATEGORIES, SPLITS, ShapesDataset, files, generate, scene
from detkit.registry import DATASETS


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder and the annotations of 60 images."""
    folder = generate(tmp_path_factory.mktemp("shapes"), "train", num_images=60)
    return folder, json.loads((folder / "annotations.json").read_text())


@pytest.fixture
def small(monkeypatch):
    """Splits of a few images, as fast as a test should be."""
    splits = {"train": files.Split(6, seed=0), "val": files.Split(4, seed=1)}
    monkeypatch.setattr(files, "SPLITS", splits)
    monkeypatch.setattr("detkit.datasets.shapes.dataset.SPLITS", splits)


def boxes_of(content):
    return np.array([annotation["bbox"] for annotation in content["annotations"]])


def test_the_same_seed_draws_the_same_scene():
    first, again, other = (scene.draw_scene(RandomState(seed)) for seed in (3, 3, 4))
    assert (first.image == again.image).all()
    assert (first.masks == again.masks).all()
    assert first.category_ids == again.category_ids
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_the_drawing_is_the_one_of_its_version():
    # Changing what is drawn changes every number measured on it: raise scene.VERSION, and then this.
    digest = hashlib.sha256()
    for seed in range(5):
        drawing = scene.draw_scene(RandomState(seed))
        digest.update(drawing.image.tobytes() + drawing.masks.tobytes() + bytes(drawing.category_ids))
    assert (scene.VERSION, digest.hexdigest()[:16]) == ("1.2", "fda74e3b87e85d46")


def test_splits_hold_different_images(tmp_path):
    train, val = (generate(tmp_path, split, num_images=2) for split in ("train", "val"))
    assert (train / "images" / "00000.jpg").read_bytes() != (val / "images" / "00000.jpg").read_bytes()
    assert SPLITS["val"].num_images >= 200


def test_every_class_occurs_and_ids_have_holes(drawn):
    _, content = drawn
    named = {category["id"]: category["name"] for category in content["categories"]}
    assert named == CATEGORIES
    assert {annotation["category_id"] for annotation in content["annotations"]} == set(CATEGORIES)
    assert sorted(CATEGORIES) != list(range(len(CATEGORIES)))
    assert sorted(CATEGORIES) != list(range(1, len(CATEGORIES) + 1))


def test_boxes_are_tight_around_the_visible_masks(drawn):
    _, content = drawn
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    for annotation in content["annotations"]:
        mask = rle.decode(annotation["segmentation"])
        assert list(mask.shape) == sizes[annotation["image_id"]]
        assert rle.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
        assert mask.sum() == annotation["area"]


def test_objects_are_neither_tiny_nor_all_alike(drawn):
    _, content = drawn
    sides = boxes_of(content)[:, 2:]
    assert sides.min() >= 5
    assert np.quantile(sides.max(axis=1), 0.1) < 22
    assert np.quantile(sides.max(axis=1), 0.9) > 45


def test_a_pixel_shows_one_object():
    masks = [scene.draw_scene(RandomState(seed)).masks for seed in range(30)]
    assert max(m.sum(axis=0).max() for m in masks if len(m)) == 1


def disc_fill():
    """Share of its box that each disc of some scenes covers."""
    for seed in range(40):
        drawing = scene.draw_scene(RandomState(seed))
        for category_id, mask in zip(drawing.category_ids, drawing.masks, strict=True):
            if CATEGORIES[category_id] == "disc":
                yield mask.sum() / (mask.any(axis=0).sum() * mask.any(axis=1).sum())


def test_objects_are_hidden_or_cut_as_far_as_the_rule_allows(monkeypatch):
    # A whole ellipse of this stretch covers 0.75 to 0.79 of its box, and some more or less in whole pixels.
    shares = np.array(list(disc_fill()))
    assert (abs(shares - 0.77) > 0.07).sum() > 3
    monkeypatch.setattr(scene, "_MIN_VISIBLE", 1.0)
    shares = np.array(list(disc_fill()))
    assert len(shares) > 10
    assert (abs(shares - 0.77) <= 0.07).all()


def test_some_images_are_empty_and_none_is_crowded(drawn):
    _, content = drawn
    counts = np.bincount([a["image_id"] for a in content["annotations"]], minlength=61)[1:]
    assert 0 < (counts == 0).sum() < 12
    assert counts.max() == 6


def test_images_are_what_the_annotations_say(drawn):
    folder, content = drawn
    shapes = set()
    for image in content["images"]:
        with Image.open(folder / "images" / image["file_name"]) as file:
            assert (file.format, file.mode) == ("JPEG", "RGB")
            assert file.size == (image["width"], image["height"])
            shapes.add(file.size)
    assert shapes == {(128, 128), (128, 96), (96, 128)}


def test_where_it_comes_from_is_in_the_file(drawn):
    _, content = drawn
    assert content["info"]["version"] == scene.VERSION
    assert content["info"]["license"] == "CC0-1.0"
    assert "seed 0" in content["info"]["description"]


def test_what_is_there_is_left_alone(tmp_path):
    folder = generate(tmp_path, "val", num_images=2)
    before = (folder / "annotations.json").stat().st_mtime_ns
    assert generate(tmp_path, "val", num_images=2) == folder
    assert (folder / "annotations.json").stat().st_mtime_ns == before


def test_something_else_in_the_folder_is_not_taken_for_it(tmp_path):
    generate(tmp_path, "val", num_images=2)
    with pytest.raises(ValueError, match=r"val/annotations\.json: expected .*3 images.*found .*2 images.*remove"):
        generate(tmp_path, "val", num_images=3)
    (tmp_path / "val" / "annotations.json").write_text('{"info": {"description": "mine"}}')
    with pytest.raises(ValueError, match=r"val/annotations\.json: expected .*found .*mine.*name another") as info:
        generate(tmp_path, "val", num_images=3)
    assert "remove" not in str(info.value)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train/annotations\.json does not exist") as info:
        generate(tmp_path, "train", num_images=1)
    assert "remove" not in str(info.value)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(rng):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "draw_scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, "val")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_at_once_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_generate_after, args=(barrier, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
    assert len(list((tmp_path / "val" / "images").iterdir())) == 8


def _generate_after(barrier, folder):
    barrier.wait()
    generate(folder, "val", num_images=8)


@pytest.mark.parametrize("inside", ["a file", "/proc"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, inside):
    root = "/proc/shapes"
    if inside == "a file":
        root = tmp_path / "file"
        root.write_text("")
    with pytest.raises(OSError, match=rf"cannot write the example data to {root}/val .*data_root"):
        generate(root, "val", num_images=1)


def test_an_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="'train' and 'val', not 'test'"):
        generate(tmp_path, "test")


@pytest.mark.usefixtures("small")
def test_the_dataset_draws_itself_on_first_use(tmp_path):
    cfg = {"type": "ShapesDataset", "data_root": str(tmp_path / "shapes"), "lazy_init": True}
    dataset = DATASETS.build(cfg)
    assert not (tmp_path / "shapes").exists()
    assert len(dataset) == 6
    assert dataset.metainfo["classes"] == ("disc", "triangle", "square", "star", "cross")
    assert dataset.metainfo["category_ids"] == (1, 3, 4, 7, 9)
    assert dataset.metainfo["ann_file"] == str(tmp_path / "shapes" / "train" / "annotations.json")
    assert len(DATASETS.build({**cfg, "ann_file": "val/annotations.json"})) == 4


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["mine", "shapes"])
def test_a_folder_without_its_file_is_neither_drawn_into_nor_to_be_removed(tmp_path, name):
    (tmp_path / name / "train" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"{name}/train/annotations\.json does not exist") as info:
        ShapesDataset(data_root=str(tmp_path / name))
    assert "remove" not in str(info.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([name, "train", "images"])


@pytest.mark.usefixtures("small")
def test_a_misspelt_folder_is_an_error_unless_drawing_is_asked_for(tmp_path):
    root = tmp_path / "mien"
    with pytest.raises(FileNotFoundError, match=r"mien/train/annotations\.json does not exist .*there is no folder"):
        ShapesDataset(data_root=str(root))
    assert not root.exists()
    assert len(ShapesDataset(data_root=str(root), draw=True)) == 6


@pytest.mark.usefixtures("small")
def test_ones_own_files_under_the_same_names_are_read_as_they_are(tmp_path):
    generate(tmp_path, "train")
    file = tmp_path / "train" / "annotations.json"
    content = json.loads(file.read_text())
    content.pop("info")
    content["images"] = content["images"][:2]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] <= 2]
    file.write_text(json.dumps(content))
    assert len(ShapesDataset(data_root=str(tmp_path))) == 2
    assert json.loads(file.read_text()) == content


@pytest.mark.usefixtures("small")
def test_with_a_file_of_its_own_nothing_is_drawn(tmp_path):
    folder = generate(tmp_path / "mine", "elsewhere", num_images=3, seed=5)
    dataset = ShapesDataset(
        data_root=str(tmp_path / "mine"),
        ann_file="elsewhere/annotations.json",
        data_prefix={"img": "elsewhere/images"},
        metainfo={"classes": ["cross", "disc"]},
    )
    assert len(dataset) == 3
    assert dataset.metainfo["category_ids"] == (9, 1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [folder.name]


def test_the_command_line_wants_a_folder():
    run = subprocess.run([sys.executable, "-m", "detkit.datasets.shapes"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.strip() == "usage: python -m detkit.datasets.shapes FOLDER"
