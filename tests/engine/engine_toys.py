"""A model, a dataset and a metric small enough to train in milliseconds; configs name them once imported."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset, Sampler

from detkit.registry import DATA_SAMPLERS, DATASETS, METRICS, MODELS
from detkit.structures.sample import DetDataSample

CLASSES = ("disc", "star", "cross")


@MODELS.register_module()
class ToyHead(nn.Module):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(8, num_classes)


@MODELS.register_module()
class ToyModel(BaseModel):
    """Normalisation, dropout and a head: everything whose state or random numbers a resumed run must restore."""

    def __init__(self, bbox_head: dict[str, Any], nan_at: int | None = None, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.bbox_head = MODELS.build(bbox_head)
        self.nan_at = nan_at
        self.calls = 0

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.bbox_head.fc.weight, std=0.5)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        logits = self.bbox_head.fc(self.body(torch.stack(list(inputs))))
        if mode != "loss":
            for sample, row in zip(data_samples, logits, strict=True):
                sample.set_metainfo({"score": row.sum().item()})
            return data_samples
        self.calls += 1
        target = torch.stack([sample.gt_instances.labels[0] for sample in data_samples])
        loss = nn.functional.cross_entropy(logits.float(), target)
        if self.calls == self.nan_at:
            loss = loss * float("nan")
        return {"loss_cls": loss, "loss_bbox": logits.float().square().mean()}


@MODELS.register_module()
class BadToy(ToyModel):
    """Its loss is not finite where a sample's index is in ``bad``; the sample also spoils the batch norm."""

    def __init__(self, bad: tuple[int, ...] = (), value: float = float("nan"), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad = bad
        self.value = value

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        if mode != "loss":
            return super().forward(inputs, data_samples, mode)
        rows = torch.stack(list(inputs))
        bad = torch.isin(rows[:, 3], torch.tensor(self.bad, dtype=torch.float32)).any()
        rows = torch.where(bad, rows * self.value, rows)
        return super().forward(list(rows), data_samples, mode)


def bad_model(*bad: int, **options: Any) -> dict[str, Any]:
    """Config of a model whose loss is not finite for the samples ``bad``."""
    return {"type": "BadToy", "bbox_head": {"type": "ToyHead"}, "bad": bad, **options}


@MODELS.register_module()
class ToyConvModel(ToyModel):
    """With a convolution, whose weight has a memory format."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = nn.Sequential(nn.Conv2d(2, 8, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten())

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        return super().forward([one.view(1, 2, 2).repeat(2, 1, 1) for one in inputs], data_samples, mode)


@MODELS.register_module()
class RememberingToy(ToyModel):
    """What it learns depends on all losses it had, which are no weights."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("had", torch.zeros(()), persistent=False)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        found = super().forward(inputs, data_samples, mode)
        if mode == "loss":
            self.had += found["loss_cls"].detach()
            found["loss_cls"] = found["loss_cls"] * self.had.clone()
        return found

    def resume_state(self) -> dict[str, Any]:
        return {"had": self.had}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        self.had.copy_(state["had"])


@DATASETS.register_module()
class ToyDataset(Dataset):
    """Samples that draw from every generator, so that seeding any of them wrongly shows."""

    def __init__(self, size: int = 12, classes: tuple[str, ...] = CLASSES, fail_at: int | None = None) -> None:
        self.size = size
        self.fail_at = fail_at
        self.metainfo = {"classes": tuple(classes), "category_ids": tuple(range(1, 2 * len(classes), 2))}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.fail_at:
            raise ValueError(f"images/{index}.jpg: the file is truncated")
        noise = torch.tensor([np.random.rand(), random.random(), torch.rand(()).item(), index], dtype=torch.float32)
        sample = DetDataSample(metainfo={"img_path": f"images/{index}.jpg", "img_id": index})
        sample.gt_instances = InstanceData(labels=torch.tensor([index % 3]))
        return {"inputs": noise, "data_samples": sample}


@DATA_SAMPLERS.register_module()
class GlobalShuffle(Sampler):
    """Shuffles with whatever the process's generator gives, as samplers of users do."""

    def __init__(self, dataset: Dataset, seed: int | None = None) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self)).tolist())


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """The mean of the model's outputs, or, where ``values`` are given, those, one validation after the other."""

    default_prefix = "toy"

    def __init__(self, values: tuple[float, ...] = (), ann_file: str | None = None) -> None:
        super().__init__()
        self.values = values
        self.ann_file = ann_file
        self.count = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(sample["score"] for sample in data_samples)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        self.count += 1
        values = self.values or (sum(results) / len(results),)
        return {"mAP": values[(self.count - 1) % len(values)], "loss": 1.0 / self.count}


def toy_config(work_dir: Any, epochs: int = 3, **changes: Any) -> dict[str, Any]:
    """A whole run; ``changes`` replaces top-level keys."""

    def loader(train: bool) -> dict[str, Any]:
        sampler = {"type": "DefaultSampler", "shuffle": train}
        return {"dataset": {"type": "ToyDataset"}, "sampler": sampler, "batch_size": 4, "num_workers": 0}

    cfg: dict[str, Any] = {
        "model": {"type": "ToyModel", "bbox_head": {"type": "ToyHead"}},
        "work_dir": str(work_dir),
        "train_dataloader": loader(True),
        "val_dataloader": loader(False),
        "test_dataloader": loader(False),
        "train_cfg": {"by_epoch": True, "max_epochs": epochs},
        "val_cfg": {},
        "test_cfg": {},
        "val_evaluator": {"type": "ToyMetric"},
        "test_evaluator": {"type": "ToyMetric"},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 4},
            {"type": "CosineAnnealingLR", "by_epoch": True, "T_max": 4},
        ],
        "default_hooks": {"logger": {"type": "LoggerHook", "interval": 2, "tensorboard": False}},
        "visualizer": {"type": "Visualizer"},
        "device": "cpu",
    }
    return {**cfg, **changes}
