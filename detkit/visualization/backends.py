"""Where the visualizer's numbers and pictures go, beside mmengine's own backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.visualization import vis_backend
from mmengine.visualization.vis_backend import force_init_env
from numpy.typing import NDArray

from detkit.registry import VISBACKENDS

__all__ = ["WandbVisBackend"]


@VISBACKENDS.register_module()
class WandbVisBackend(vis_backend.WandbVisBackend):
    """Weights & Biases with the run's iterations as x axis; arguments are mmengine's.

    mmengine's backend drops the step: points are numbered by calls, those of training, of validation and of
    pictures together. The iteration is a metric of its own here (``step``), so that a resumed run may go back to its
    checkpoint; Weights & Biases refuses steps that go back.
    """

    def _init_env(self) -> None:
        super()._init_env()
        self._wandb.define_metric("step")
        self._wandb.define_metric("*", step_metric="step")

    @force_init_env
    def add_image(self, name: str, image: NDArray[np.uint8], step: int = 0, **kwargs: Any) -> None:
        """Add an (H, W, 3) RGB image."""
        self._wandb.log({name: self._wandb.Image(image), "step": step}, commit=self._commit)

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """Add one number."""
        self._wandb.log({name: value, "step": step}, commit=self._commit)

    @force_init_env
    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Add numbers by name; ``file_path`` has no effect."""
        self._wandb.log({**scalar_dict, "step": step}, commit=self._commit)

    def close(self) -> None:
        """End the run; mmengine calls a function that Weights & Biases no longer has."""
        if hasattr(self, "_wandb"):
            self._wandb.finish()
