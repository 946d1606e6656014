import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detkit import config as configs
from detkit.checkpoints import save_checkpoint_file
from detkit.datasets.shapes import generate
from detkit.inference import Detections, DetInferencer
from detkit.models.roi_heads.mask_heads.pasting import encode_masks, paste_masks
from detkit.registry import DATASETS, MODELS

CLASSES = ["cross", "disc", "square", "star", "triangle"]  # not in the order of the file
CONFIG = {
    "model": {
        "type": "RetinaNet",
        "data_preprocessor": {"type": "DetDataPreprocessor", "mean": [120.0], "std": [60.0], "pad_size_divisor": 32},
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 8, "norm_eval": False},
        "neck": {"type": "FPN", "in_channels": [8, 16, 32, 64], "out_channels": 16, "start_level": 1, "num_outs": 3},
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": 5,
            "in_channels": 16,
            "feat_channels": 16,
            "stacked_convs": 1,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 2,
                "scales_per_octave": 1,
                "ratios": [1.0],
                "strides": [8, 16, 32],
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
            "loss_cls": {"type": "FocalLoss"},
            "loss_bbox": {"type": "L1Loss"},
        },
        "test_cfg": {"nms_pre": 100, "score_thr": 0.0, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 10},
    },
    "test_dataloader": {
        "dataset": {
            "type": "CocoDataset",
            "ann_file": "annotations.json",
            "data_prefix": {"img": "images"},
            "metainfo": {"classes": CLASSES},
            "test_mode": True,
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "Resize", "scale": (160, 160), "keep_ratio": True},
                {"type": "LoadAnnotations", "with_bbox": True},
                {
                    "type": "PackDetInputs",
                    "meta_keys": ["img_id", "img_path", "ori_shape", "img_shape", "scale_factor"],
                },
            ],
        }
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("shapes"), "val", num_images=5)


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(CONFIG["model"]))
    # Scores that differ, as those of a trained model do.
    torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=0.5)
    torch.nn.init.normal_(model.bbox_head.retina_cls.bias, std=1)
    label_map = {"classes": CLASSES, "category_ids": [9, 1, 4, 7, 3]}
    return {"meta": {"cfg": configs.dump(CONFIG), "label_map": label_map}, "state_dict": model.state_dict()}


@pytest.fixture(scope="module")
def checkpoint(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "last.pth"
    save_checkpoint_file(content, path)
    return path


@pytest.fixture(scope="module")
def inferencer(checkpoint):
    return DetInferencer(checkpoint, device="cpu", score_thr=0.0)


def assert_equal(one: Detections, other: Detections):
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    assert one.names == other.names


def test_the_numbers_are_those_of_the_evaluation(inferencer, folder, content):
    cfg = copy.deepcopy(CONFIG)
    dataset = DATASETS.build({**cfg["test_dataloader"]["dataset"], "data_root": str(folder)})
    model = MODELS.build(cfg["model"])
    model.load_state_dict(content["state_dict"])
    model.eval()
    found = inferencer(folder / "images")
    assert len(found) == len(dataset) == 5
    for index, one in enumerate(found):
        packed = dataset[index]
        with torch.no_grad():
            (sample,) = model.test_step({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
        expected = sample.pred_instances
        assert Path(one.image).name == Path(sample.img_path).name
        assert len(one) == 10
        np.testing.assert_allclose(one.boxes, expected.bboxes, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(one.scores, expected.scores, rtol=1e-4)
        assert one.names == [CLASSES[label] for label in expected.labels]


def test_the_batch_size_does_not_matter(inferencer, folder):
    for one, other in zip(inferencer(folder / "images", batch_size=1), inferencer(folder / "images"), strict=True):
        assert_equal(one, other)


def test_files_arrays_and_lists_of_them(inferencer, folder):
    path = folder / "images" / "00001.jpg"
    array = np.ascontiguousarray(np.asarray(Image.open(path))[..., ::-1])  # BGR
    (from_path,), (from_array,) = inferencer(path), inferencer(array)
    assert from_path.image == str(path)
    assert from_array.image is None
    np.testing.assert_allclose(from_path.scores, from_array.scores, atol=0.02)  # two JPEG decoders
    both = inferencer([array, str(path)])
    assert_equal(both[0], from_array)
    assert_equal(both[1], from_path)


def test_boxes_are_in_pixels_of_the_upright_image(inferencer, folder, tmp_path):
    image = Image.open(folder / "images" / "00001.jpg").convert("RGB")
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    image.save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter; to be turned back when shown
    image.rotate(90, expand=True).save(turned, exif=exif)
    one, other = inferencer([upright, turned])
    assert_equal(one, other)


def test_the_most_certain_come_first_and_the_least_are_left_out(inferencer, folder):
    (every,) = inferencer(folder / "images" / "00000.jpg")
    assert (np.diff(every.scores) <= 0).all()
    threshold = float(every.scores[3])
    (some,) = inferencer(folder / "images" / "00000.jpg", score_thr=threshold)
    assert len(some) == (every.scores >= threshold).sum() < len(every)


def test_results_are_plain_values_for_json(inferencer, folder):
    (one,) = inferencer(folder / "images" / "00000.jpg")
    again = json.loads(json.dumps(one.to_dict()))
    assert again["names"] == one.names
    assert len(again["boxes"]) == len(again["scores"]) == len(again["labels"]) == 10
    assert again["boxes"][0] == pytest.approx(one.boxes[0].tolist())


def test_pictures_of_equal_names_do_not_replace_each_other(inferencer, folder, tmp_path):
    path = folder / "images" / "00000.jpg"
    inferencer([path, path, np.zeros((40, 50, 3), np.uint8)], out_dir=tmp_path / "new" / "vis")
    names = sorted(file.name for file in (tmp_path / "new" / "vis").iterdir())
    assert names == ["00000_2_detections.jpg", "00000_detections.jpg", "image_detections.jpg"]


def test_pictures_show_the_image_in_its_colours(inferencer, tmp_path):
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 2] = 250  # BGR
    inferencer(red, out_dir=tmp_path, score_thr=1.0)
    picture = np.asarray(Image.open(tmp_path / "image_detections.jpg"))
    assert picture[5, 5].tolist() == pytest.approx([250, 0, 0], abs=6)


def test_masks_come_as_bitmaps_however_the_model_gives_them(inferencer, folder, monkeypatch):
    step = inferencer.model.test_step
    found = {}
    for kind in ("bool", "runs"):

        def with_masks(batch, kind=kind):
            samples = step(batch)
            for sample in samples:
                boxes, shape = sample.pred_instances.bboxes, sample.ori_shape
                paste = paste_masks if kind == "bool" else encode_masks
                sample.pred_instances.masks = paste(torch.ones(len(boxes), 4, 4), boxes, shape, 0.5)
            return samples

        monkeypatch.setattr(inferencer.model, "test_step", with_masks)
        found[kind] = inferencer(folder / "images" / "00001.jpg")[0]
    assert found["bool"].masks.any()
    assert found["runs"].masks.dtype == bool
    assert np.array_equal(found["runs"].masks, found["bool"].masks)


def write(content, tmp_path, **meta):
    path = tmp_path / "changed.pth"
    save_checkpoint_file({**content, "meta": {**content["meta"], **meta}}, path)
    return path


def test_config_and_classes_may_be_given(content, tmp_path, folder):
    path = write(content, tmp_path, cfg=None, label_map=None)
    with pytest.raises(ValueError, match=r"changed\.pth: carries no config"):
        DetInferencer(path, device="cpu")
    with pytest.raises(ValueError, match=r"changed\.pth: carries no class names"):
        DetInferencer(path, device="cpu", config=CONFIG)
    given = DetInferencer(path, device="cpu", config=CONFIG, classes=list("abcde"), score_thr=0)
    assert set(given(folder / "images" / "00000.jpg")[0].names) <= set("abcde")


def test_classes_that_do_not_fit_the_head_are_refused(content, tmp_path):
    path = write(content, tmp_path, label_map={"classes": ["a", "b"], "category_ids": [1, 2]})
    with pytest.raises(ValueError, match=r"num_classes=5, but .*changed\.pth has 2 classes"):
        DetInferencer(path, device="cpu")


def test_weights_of_another_model_are_refused(content, tmp_path):
    state = {key: value for key, value in content["state_dict"].items() if "retina_reg" not in key}
    path = write({**content, "state_dict": state}, tmp_path)
    with pytest.raises(ValueError, match="weights and model do not agree"):
        DetInferencer(path, device="cpu")


def test_a_carried_config_can_name_registered_classes_only(content, tmp_path):
    cfg = copy.deepcopy(CONFIG)
    cfg["model"] = {"type": "os.system", "command": f"touch {tmp_path}/ran"}
    path = write(content, tmp_path, cfg=configs.dump(cfg))
    with pytest.raises(KeyError, match=r"model\.type: 'os\.system' is not in the registry"):
        DetInferencer(path, device="cpu")
    assert not (tmp_path / "ran").exists()


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(_Touch(tmp_path / "ran"), protocol=2))
    with pytest.raises(ValueError, match=r"evil\.pth"):
        DetInferencer(path, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        ("nowhere.jpg", FileNotFoundError, r"nowhere\.jpg: no such image"),
        (np.zeros((4, 4), np.uint8), ValueError, r"\(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), ValueError, r"\(4, 4, 3\) float32"),
        (3, TypeError, "got int"),
    ],
)
def test_what_is_no_image_is_refused(inferencer, images, error, match):
    with pytest.raises(error, match=match):
        inferencer(images)


def test_folders_without_images_and_broken_files_are_named(inferencer, tmp_path, folder):
    with pytest.raises(ValueError, match="the folder holds no image"):
        inferencer(tmp_path)
    (tmp_path / "bad.jpg").write_bytes((folder / "images" / "00000.jpg").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        inferencer(tmp_path)
    with pytest.raises(ValueError, match="batch_size"):
        inferencer(folder / "images", batch_size=0)


def test_no_image_gives_no_result(inferencer):
    assert inferencer([]) == []


def test_a_config_without_a_pipeline_is_refused(content, tmp_path):
    path = write(content, tmp_path, cfg=configs.dump({"model": CONFIG["model"]}))
    with pytest.raises(ValueError, match="neither test_dataloader nor val_dataloader"):
        DetInferencer(path, device="cpu")
    cfg = copy.deepcopy(CONFIG)
    del cfg["test_dataloader"]["dataset"]["pipeline"][0]
    with pytest.raises(ValueError, match=r"test_dataloader\.dataset\.pipeline: must begin with LoadImageFromFile"):
        DetInferencer(write(content, tmp_path, cfg=configs.dump(cfg)), device="cpu")


ROOT = Path(__file__).parents[1]


def run_tool(*arguments, cwd):
    """``tools/infer.py`` of this checkout, installed or not."""
    command = [sys.executable, str(ROOT / "tools" / "infer.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_command_line_tool(checkpoint, folder, tmp_path):
    images = [str(folder / "images" / name) for name in ("00000.jpg", "00001.jpg")]
    options = ["--checkpoint", str(checkpoint), "--out-dir", str(tmp_path / "vis"), "--score-thr", "0"]
    options += ["--json", str(tmp_path / "new" / "found.json"), "--device", "cpu"]
    run = run_tool(*images, *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{images[0]}: ")
    assert run.stdout.endswith(f"pictures: {tmp_path / 'vis'}\n")
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert [one["image"] for one in found] == images
    assert len(list((tmp_path / "vis").iterdir())) == 2


def test_the_tool_reports_errors_in_one_line(checkpoint, tmp_path):
    run = run_tool("none.jpg", "--checkpoint", checkpoint, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "error: none.jpg: no such image or folder"
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "vis").exists()
