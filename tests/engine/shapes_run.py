"""A small RetinaNet on a few of the embedded example images, as config; without batch norm, which sees batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detkit.config import load

CONFIG = Path(__file__).parents[2] / "configs/retinanet/retinanet_r18_fpn_shapes.py"
_NORM = {"type": "GN", "num_groups": 4}


def shapes_config(
    work_dir: Any, data_root: Any, batch_size: int | None, iterations: int = 20, total_batch_size: int | None = None
) -> Any:
    """A run over a drawn ``val`` split in ``data_root``, with batches of a size per process or of all together."""
    cfg = load(
        CONFIG,
        {
            "model.backbone.base_channels": 8,
            "model.backbone.norm_cfg": _NORM,
            "model.neck.in_channels": [8, 16, 32],
            "model.neck.out_channels": 16,
            "model.neck.norm_cfg": _NORM,
            "model.bbox_head.in_channels": 16,
            "model.bbox_head.feat_channels": 16,
            "model.bbox_head.stacked_convs": 1,
            "model.bbox_head.norm_cfg": _NORM,
            "data_root": str(data_root),
            "train_ann_file": "val/annotations.json",
            "train_images": "val/images/",
            "image_scale": [64, 64],
            "batch_size": batch_size or 4,
        },
    )
    cfg.work_dir, cfg.device = str(work_dir), "cpu"
    # All the same size: what a batch pads would depend on its images.
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform["type"] == "Resize":
            transform["keep_ratio"] = False
    cfg.train_dataloader.batch_sampler = None
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": iterations}
    cfg.param_scheduler = []
    cfg.optim_wrapper = {"optimizer": {"type": "SGD", "lr": 0.02, "momentum": 0.9}}
    cfg.default_hooks = {
        "checkpoint": {"type": "CheckpointHook", "interval": iterations, "by_epoch": False},
        "logger": {"type": "LoggerHook", "interval": 10, "tensorboard": False},
    }
    cfg.custom_hooks = []
    if total_batch_size is not None:
        del cfg.train_dataloader["batch_size"]
        cfg.train_dataloader.total_batch_size = total_batch_size
    return cfg
