"""docs/data_sets.md: what it names is there, and its snippets work."""

import re
from pathlib import Path

import cv2
import numpy as np
import torch

from detkit.config.checking import check
from detkit.registry import DATASETS, METRICS, MODELS, TRANSFORMS

PAGE = (Path(__file__).parents[2] / "docs/data_sets.md").read_text()
MASKS, PROPOSALS, OWN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_table_names_what_is_there():
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")][1:]
    assert len(rows) == 9
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert len(named) > 14
    assert all(DATASETS.get(name) is not None for name in named)
    assert all(METRICS.get(name) is not None for row in rows for name in re.findall(r"`(\w+)`", row[4]))
    # No data set and no metric of ours is left out.
    shipped = {name for name, cls in DATASETS.module_dict.items() if cls.__module__.startswith("detkit.")}
    wrappers = {"ConcatDataset", "MultiImageMixDataset", "LVISDataset"}
    assert shipped - wrappers <= named
    metrics = {name for name, cls in METRICS.module_dict.items() if cls.__module__.startswith("detkit.evaluation")}
    assert {name for name in metrics if f"`{name}`" not in PAGE} == set()


def test_the_snippets_build():
    given = {}
    exec(MASKS, given)
    exec(PROPOSALS, other := {})
    for pipeline in (given["train_pipeline"], other["train_pipeline"]):
        assert all(TRANSFORMS.build(step) is not None for step in pipeline)
    assert MODELS.build(given["data_preprocessor"]).pad_mask
    assert METRICS.build(given["val_evaluator"]).metrics == ["bbox", "segm"]
    assert METRICS.build(other["test_evaluator"]).path == "data/coco/proposals/rpn_train.pkl"
    check({"train_dataloader": {"batch_size": 1, "dataset": other["train_dataset"]}})


def test_a_format_of_ones_own(tmp_path):
    exec(OWN, {})
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 9, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a.png 9 8\n")
    steps = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackDetInputs"}]
    cfg = {"type": "DotsDataset", "data_root": str(tmp_path), "ann_file": "list.txt", "pipeline": steps}
    dataset = DATASETS.build({**cfg, "data_prefix": {"img": "."}})
    assert dataset[0]["data_samples"].gt_instances.bboxes.tolist() == [[0, 0, 9, 8]]
    assert dataset[0]["inputs"].dtype == torch.uint8
    assert dataset.metainfo["classes"] == ("dot",)
