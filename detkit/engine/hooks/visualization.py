"""Pictures of predictions beside the ground truth, while a run validates or tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.runner import BaseLoop

from detkit.engine.distributed import is_main_process
from detkit.engine.evaluation.annotation_frame import to_image_frame
from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS

__all__ = ["DetVisualizationHook"]


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draws images of the validation set, ground truth at the left and predictions at the right.

    The pictures are ``work_dir/predictions/001_<image>.png`` …; visual backends of the run (TensorBoard, W&B) get
    them too. Without ``interval`` these are the first images of the last validation; with it, as in MMDetection,
    each validation draws the first image of every ``interval``-th batch.

    Args:
        draw: Whether to draw at all.
        interval: Batches between two pictures of a validation; None takes the first images of the set.
        score_thr: Lowest score of a box that is drawn, in [0, 1].
        show: Open a window for each picture.
        wait_time: Seconds the window stays open; 0 is until it is closed.
        test_out_dir: Folder inside the work directory for the pictures of a test.
        backend_args: File backend of mmengine that images are read with; None reads local files.
        num_images: How many images at most; None for no limit.
        val_interval: Validations between two sets of pictures, the last one drawn in any case; None draws the last
            one only, or each one where ``interval`` is given.

    Raises:
        ValueError: A number that makes no sense.
    """

    priority = "NORMAL"

    def __init__(
        self,
        draw: bool = True,
        interval: int | None = None,
        score_thr: float = 0.3,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = "predictions",
        backend_args: Mapping[str, Any] | None = None,
        num_images: int | None = 16,
        val_interval: int | None = None,
    ) -> None:
        for name, value in (("interval", interval), ("num_images", num_images), ("val_interval", val_interval)):
            if value is not None and value < 1:
                raise ValueError(f"DetVisualizationHook: {name} must be at least 1, or None, got {value}")
        self.draw = draw
        self.interval = interval
        self.score_thr = score_thr
        self.show = show
        self.wait_time = wait_time
        self.test_out_dir = test_out_dir or "predictions"
        self.backend_args = None if backend_args is None else dict(backend_args)
        self.num_images = num_images
        self.val_interval = (1 if interval else None) if val_interval is None else val_interval
        self._validations = 0
        self._drawn = 0
        self._drawing = False

    def before_val_epoch(self, runner: Any) -> None:
        """Decide whether this validation is drawn."""
        self._validations += 1
        self._drawn = 0
        self._drawing = self.draw and self._is_due(runner)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw a batch, or its first image."""
        samples = list(outputs or ())
        if self.interval is not None:
            samples = samples[:1] if batch_idx % self.interval == 0 else []
        self._draw_batch(runner, runner.val_dataloader.dataset, samples, "predictions")

    def before_test_epoch(self, runner: Any) -> None:
        """A test is always drawn."""
        self._drawn = 0
        self._drawing = self.draw

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw a batch."""
        self._draw_batch(runner, runner.test_dataloader.dataset, outputs or (), self.test_out_dir)

    def _is_due(self, runner: Any) -> bool:
        loop = runner._train_loop
        if not isinstance(loop, BaseLoop) or loop.iter >= loop.max_iters:
            return True  # by itself, or after the last iteration
        return self.val_interval is not None and self._validations % self.val_interval == 0

    def _draw_batch(self, runner: Any, dataset: Any, samples: Sequence[Any], folder: str) -> None:
        if not self._drawing:
            return
        left = len(samples) if self.num_images is None else max(self.num_images - self._drawn, 0)
        for sample in samples[:left]:
            self._drawn += 1
            if "img_path" not in sample:
                continue  # an image that was never a file
            path = Path(sample.img_path)
            # Turned upright, as the pipeline does it.
            image = mmcv.imread(str(sample.img_path), channel_order="rgb", backend_args=self.backend_args)
            out_file = Path(runner.work_dir, folder, f"{self._drawn:03d}_{path.stem}.png")
            step = runner.iter if isinstance(runner._train_loop, BaseLoop) else 0
            out_file.parent.mkdir(parents=True, exist_ok=True)
            runner.visualizer.add_datasample(
                path.stem,
                image,
                to_image_frame(sample, dataset),
                draw_gt="gt_instances" in sample,
                draw_pred=True,
                show=self.show,
                wait_time=self.wait_time,
                pred_score_thr=self.score_thr,
                out_file=str(out_file),
                step=step,
            )
            if runner.visualizer._vis_backends and is_main_process():
                runner.visualizer.add_image(path.stem, runner.visualizer.get_image(), step)
