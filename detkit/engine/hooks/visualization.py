"""Pictures of predictions beside the ground truth, while a run validates or tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.runner import BaseLoop

from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["DetVisualizationHook"]


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draws the first images of the validation set into ``work_dir/predictions``.

    Args:
        draw: Whether to draw at all.
        interval: Validations between two sets of pictures; None draws at the last one only.
        score_thr: Lowest score of a box that is drawn, in [0, 1].
        num_images: How many images.
        test_out_dir: Folder inside the work directory for the pictures of a test.
    """

    priority = "NORMAL"

    def __init__(
        self,
        draw: bool = True,
        interval: int | None = None,
        score_thr: float = 0.3,
        num_images: int = 16,
        test_out_dir: str = "predictions",
    ) -> None:
        self.draw = draw
        self.interval = interval
        self.score_thr = score_thr
        self.num_images = num_images
        self.test_out_dir = test_out_dir
        self._validations = 0
        self._drawn = 0

    def before_val_epoch(self, runner: Any) -> None:
        """Decide whether this validation is drawn."""
        self._validations += 1
        self._drawn = 0 if self.draw and self._is_due(runner) else self.num_images

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw a batch."""
        self._draw_batch(runner, outputs or (), "predictions")

    def before_test_epoch(self, runner: Any) -> None:
        """A test is always drawn."""
        self._drawn = 0 if self.draw else self.num_images

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw a batch."""
        self._draw_batch(runner, outputs or (), self.test_out_dir)

    def _is_due(self, runner: Any) -> bool:
        loop = runner._train_loop
        if not isinstance(loop, BaseLoop) or loop.iter >= loop.max_iters:
            return True  # by itself, or after the last iteration
        return self.interval is not None and self._validations % self.interval == 0

    def _draw_batch(self, runner: Any, samples: Sequence[Any], folder: str) -> None:
        for sample in samples[: self.num_images - self._drawn]:
            self._drawn += 1
            if "img_path" not in sample:
                continue  # an image that was never a file
            path = Path(sample.img_path)
            image = mmcv.imread(str(path), channel_order="rgb")  # turned upright, as the pipeline does it
            out_file = Path(runner.work_dir, folder, f"{self._drawn:03d}_{path.stem}.png")
            out_file.parent.mkdir(parents=True, exist_ok=True)
            runner.visualizer.add_datasample(
                path.stem,
                image,
                sample,
                draw_gt="gt_instances" in sample,
                draw_pred=True,
                pred_score_thr=self.score_thr,
                out_file=str(out_file),
                step=runner.iter if isinstance(runner._train_loop, BaseLoop) else 0,
            )
