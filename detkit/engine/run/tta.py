"""Test-time augmentation of a config: its own, or a horizontal flip of each image."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["default_tta_pipeline", "use_tta"]


def use_tta(cfg: Any) -> None:
    """Make ``cfg`` test with augmentation, in place.

    ``tta_model`` wraps the model (default: ``DetTTAModel``), and ``tta_pipeline`` replaces the pipeline of the test
    data (default: that pipeline, with each image as it is and flipped).

    Args:
        cfg: Config of a run.

    Raises:
        ValueError: It has no test data.
    """
    if not cfg.get("test_dataloader"):
        raise ValueError("test-time augmentation needs a test_dataloader, and the config has none")
    wrapper = copy.deepcopy(cfg.get("tta_model") or {"type": "DetTTAModel"})
    wrapper["module"] = cfg.model
    cfg.model = wrapper
    loaders = cfg.test_dataloader if isinstance(cfg.test_dataloader, (list, tuple)) else [cfg.test_dataloader]
    for loader in loaders:
        dataset = loader["dataset"]
        while "dataset" in dataset:
            dataset = dataset["dataset"]
        dataset["pipeline"] = copy.deepcopy(cfg.get("tta_pipeline") or default_tta_pipeline(dataset["pipeline"]))


def default_tta_pipeline(pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A test pipeline that gives each image as it is and flipped.

    Flips come right after the last resizing, or after loading where there is none: before padding, and before ground
    truth that stays in the frame of the original image.
    """
    resizing = [index for index, step in enumerate(pipeline) if "Resize" in str(step["type"])]
    start = (resizing[-1] if resizing else 0) + 1
    rest = copy.deepcopy(list(pipeline[start:]))
    for step in rest:
        if "meta_keys" in step:
            step["meta_keys"] = tuple(dict.fromkeys((*step["meta_keys"], "ori_shape", "flip", "flip_direction")))
    flips = [{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0}]
    views = {"type": "TestTimeAug", "transforms": [flips, *([step] for step in rest)]}
    return [*copy.deepcopy(list(pipeline[:start])), views]
