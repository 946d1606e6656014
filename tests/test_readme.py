"""The snippets of README and docs run."""

import re
import sys
from pathlib import Path

import pytest
import torch

from detkit.config import load
from detkit.events import EventStorage
from detkit.registry import HOOKS, MODELS

ROOT = Path(__file__).parents[1]
BASE = ROOT / "configs" / "retinanet" / "retinanet_r18_fpn_shapes.py"


def snippets(page):
    """Python blocks of a page, unindented."""
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```", (ROOT / page).read_text(), flags=re.S | re.M)
    return [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, body in blocks]


def child(tmp_path, text):
    """A child of the demo config, outside the checkout."""
    path = tmp_path / "mine.py"
    own_text = re.sub(r'_base_ = ".*"', "", text)
    path.write_text(f'_base_ = "{BASE}"\n{own_text}')
    return load(path)


@pytest.mark.parametrize("page", ["README.md", "docs/train_on_your_data.md"])
def test_a_child_config_for_ones_own_data(tmp_path, page):
    cfg = child(tmp_path, next(s for s in snippets(page) if "data_root" in s))
    assert cfg.train_dataloader.dataset.ann_file == "train.json"
    assert cfg.val_dataloader.dataset.data_root == "data/mine/"
    assert cfg.val_dataloader.dataset.metainfo.classes == ("cat", "dog")
    assert cfg.model.bbox_head.num_classes == 2


def test_notes_and_settings_of_the_page_on_logging(tmp_path):
    notes, settings = snippets("docs/logging.md")
    given = {"positive": torch.tensor([True, False, True]), "scores": torch.rand(5), "image": torch.zeros(3, 4, 4)}
    with EventStorage() as storage:
        exec(notes, given)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"num_positives": 2.0, "thresholds": 0.5, "rpn/num_positives": 2.0}
    assert [len(storage.take_images()), len(storage.take_histograms())] == [1, 1]
    cfg = child(tmp_path, settings)
    assert HOOKS.build(cfg.default_hooks.logger).async_write
    assert HOOKS.build(cfg.default_hooks.timer).warmup_iters == 3


def test_swapping_a_module(tmp_path):
    cfg = child(tmp_path, next(s for s in snippets("README.md") if "SmoothL1Loss" in s))
    assert MODELS.build(cfg.model).bbox_head.loss_bbox.beta == 0.11


def test_a_loss_of_ones_own(tmp_path):
    loss = next(s for s in snippets("README.md") if "register_module" in s)
    (tmp_path / "my_losses.py").write_text(loss)
    try:
        cfg = child(tmp_path, next(s for s in snippets("README.md") if "custom_imports" in s))
        own = MODELS.build(cfg.model).bbox_head.loss_bbox
        value = own(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        torch.testing.assert_close(value, torch.log(torch.cosh(torch.tensor(1.0))))
    finally:
        sys.modules.pop("my_losses", None)
        MODELS.module_dict.pop("LogCoshLoss", None)


def test_links_and_pictures_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
