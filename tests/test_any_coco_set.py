"""The demo config on data it was not made for: any category ids, any order of classes, by overrides alone."""

import json

import pytest
import torch
from mmengine.structures import InstanceData

from detkit.config import load
from detkit.datasets.shapes import generate
from detkit.engine import Runner, load_checkpoint_file
from detkit.inference import DetInferencer
from detkit.registry import DATASETS, METRICS

CONFIG = "configs/retinanet/retinanet_r18_fpn_shapes.py"
NAMES = ["disc", "triangle", "square", "star", "cross"]
IDS = {"from 0": [0, 1, 2, 3, 4], "from 1": [1, 2, 3, 4, 5], "with holes": [7, 3, 90, 21, 12]}
SMALL = [
    "model.backbone.base_channels=8",
    "model.neck.in_channels=[8,16,32]",
    "model.neck.out_channels=16",
    "model.bbox_head.in_channels=16",
    "model.bbox_head.feat_channels=16",
    "batch_size=4",
    "max_epochs=1",
    "default_hooks.logger.interval=1",
    "model.test_cfg.score_thr=0.0",
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Sixteen images with somebody else's file names; the category ids are replaced below."""
    root = tmp_path_factory.mktemp("data")
    generate(root, "mine", num_images=16, seed=3)
    return root


def with_ids(root, ids):
    """Write ``root/NAME.json`` with other category ids, the categories listed backwards."""
    content = json.loads((root / "mine" / "annotations.json").read_text())
    new_id = {c["id"]: ids[NAMES.index(c["name"])] for c in content["categories"]}
    content["categories"] = [{"id": new_id[c["id"]], "name": c["name"]} for c in reversed(content["categories"])]
    for annotation in content["annotations"]:
        annotation["category_id"] = new_id[annotation["category_id"]]
    path = root / f"ids_{'_'.join(map(str, ids))}.json"
    path.write_text(json.dumps(content))
    return path.name


def overrides(root, file, classes=NAMES):
    return [f"data_root={root}/", f"train_ann_file={file}", f"val_ann_file={file}", "train_images=mine/images/",
            "val_images=mine/images/", f"classes={','.join(classes)}", *SMALL]  # fmt: skip


def train(root, file, work_dir, classes=NAMES):
    cfg = load(CONFIG, overrides(root, file, classes))
    cfg.work_dir, cfg.device = str(work_dir), "cpu"
    Runner.from_cfg(cfg).train()
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], lines[-1]


def test_category_ids_do_not_matter(drawn, tmp_path):
    losses, checkpoints = [], []
    for name, ids in IDS.items():
        work_dir = tmp_path / name.replace(" ", "_")
        losses.append(train(drawn, with_ids(drawn, ids), work_dir)[0])
        checkpoints.append(load_checkpoint_file(work_dir / "epoch_1.pth"))
        assert checkpoints[-1]["meta"]["label_map"] == {"classes": NAMES, "category_ids": ids}
    assert losses[0] == losses[1] == losses[2]
    assert len(losses[0]) == 4
    for other in checkpoints[1:]:
        for key, value in checkpoints[0]["state_dict"].items():
            assert torch.equal(value, other["state_dict"][key]), key


def test_a_class_list_in_another_order_names_predictions_rightly(drawn, tmp_path):
    classes = ["star", "disc", "cross", "square", "triangle"]
    _, last = train(drawn, with_ids(drawn, IDS["with holes"]), tmp_path, classes)
    assert {f"coco/{name}_precision" for name in classes} <= last.keys()
    inferencer = DetInferencer(str(tmp_path / "epoch_1.pth"), device="cpu")
    (found,) = inferencer([str(drawn / "mine" / "images" / "00000.jpg")], score_thr=0.0)
    assert len(found) > 0
    assert found.names == [classes[label] for label in found.labels]


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("classes", [NAMES, ["star", "disc", "cross", "square", "triangle"], ["cross", "disc"]])
def test_annotations_as_predictions_are_perfect_in_every_class(drawn, ids, classes):
    """Were a label swapped anywhere between file and metric, a class would score 0."""
    cfg = load(CONFIG, overrides(drawn, with_ids(drawn, ids), classes))
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes, labels=truth.labels, scores=torch.ones(len(truth.labels))
        )
        metric.process({}, [sample.to_dict()])
    result = metric.evaluate(len(dataset))
    for name in classes:
        assert result[f"coco/{name}_precision"] == pytest.approx(1.0), name
