"""Two steps of a run; ``tests/tools`` has the command. Whatever would stop the run later on must stop it."""

from __future__ import annotations

from typing import Any

import pytest
from engine.engine_toys import ToyDataset, bad_model, toy_config
from mmengine.config import Config
from mmengine.structures import InstanceData

from detkit.engine import dry_run
from detkit.registry import DATASETS


@DATASETS.register_module()
class Unlabelled(ToyDataset):
    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        sample["data_samples"].gt_instances = InstanceData()
        return sample


def loader(kind: str = "ToyDataset", shuffle: bool = False) -> dict[str, Any]:
    return {"dataset": {"type": kind}, "sampler": {"type": "DefaultSampler", "shuffle": shuffle}, "batch_size": 4}


def test_a_loss_that_is_not_finite_ends_it_wherever_the_log_would_be_written(tmp_path):
    cfg = toy_config(tmp_path / "run", model=bad_model(5), train_dataloader=loader())  # the second batch
    cfg["default_hooks"]["logger"]["interval"] = 50
    with pytest.raises(FloatingPointError, match=r"at iteration 2: .*images/5.jpg") as caught:
        dry_run(Config(cfg))
    assert "bundle" not in str(caught.value)  # it would be in the folder that is deleted
    cfg["default_hooks"]["invalid_loss"] = None
    assert "nan" in dry_run(Config(cfg))[3]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("several", [False, True])
def test_a_validation_loss_is_tried(tmp_path, several):
    cfg = toy_config(tmp_path, val_cfg={"loss": True}, val_dataloader=loader("Unlabelled"))
    if several:
        cfg["val_cfg"] = {"type": "MultiDatasetValLoop", "names": ["one", "two"], "loss": True}
        cfg["val_dataloader"] = [loader(), loader("Unlabelled")]
        cfg["val_evaluator"] = [{"type": "ToyMetric"}, {"type": "ToyMetric"}]
    place = r"val_dataloader\.1\.dataset" if several else r"val_dataloader\.dataset"
    with pytest.raises(ValueError, match=rf"{place}\.pipeline: a loss needs annotations, but images/0.jpg has none"):
        dry_run(Config(cfg))
