"""docs/augmentation.md: its pipelines make samples, its hooks build, its table has the steps that are there."""

import re
from pathlib import Path

import numpy as np
import pytest
from transforms.squares import squares

from detkit.datasets import BaseDetDataset
from detkit.registry import DATASETS, HOOKS, MODELS, TRANSFORMS

PAGE = (Path(__file__).parents[2] / "docs/augmentation.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def read(results):
    return {**results, **squares(), "img_path": results["img_path"]}


@pytest.fixture
def page_set():
    class PageSet(BaseDetDataset):
        def load_data_list(self):
            record = {"width": 96, "height": 64, "instances": [{}]}
            return [{"img_path": f"mem://{i}.png", "img_id": i, **record} for i in range(8)]

    return PageSet


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_pipelines_make_samples(page_set, number):
    config = {}
    exec(SNIPPETS[number], config)
    for name in ("train_pipeline", "last_pipeline"):
        steps = config.get(name)
        if steps is None:
            continue
        if "train_dataset" in config:
            mixed = {**config["train_dataset"], "dataset": page_set(pipeline=[read])}
            dataset = DATASETS.build(mixed)
        else:
            loading = [step["type"] for step in steps[:2]]
            assert loading == ["LoadImageFromFile", "LoadAnnotations"]
            dataset = page_set(pipeline=[read, *steps[2:]])
        np.random.seed(0)
        for index in range(2):
            sample = dataset[index]
            assert sample["inputs"].shape in ((3, 640, 640), (3, 300, 300))
    for hook in config.get("custom_hooks", ()):
        HOOKS.build({key: value for key, value in hook.items() if key != "priority"})
    if "data_preprocessor" in config:
        assert len(MODELS.build(config["data_preprocessor"]).batch_augments) == 1


def test_the_table_names_steps_that_are_there():
    table = PAGE.partition("## The steps")[2].partition("\n## ")[0]
    names = set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert len(names) > 20
    assert all(TRANSFORMS.get(name) is not None for name in names)
    own = {
        name
        for name, step in TRANSFORMS.module_dict.items()
        if re.match(r"detkit\.transforms\.(affine|cropping|mixing|photometric|placing|resizing)$", step.__module__)
    }
    assert own <= names
