"""DetLocalVisualizer: what a detector sees, as pictures in files and in the run's visual backends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from numpy.typing import NDArray
from PIL import Image

from detkit.registry import VISBACKENDS, VISUALIZERS, find
from detkit.structures import DetDataSample
from detkit.structures.masks.run_lengths import decode_run_lengths
from detkit.visualization.drawing import Colour, captioned, contact_sheet, draw_instances

__all__ = ["DetLocalVisualizer"]


@VISUALIZERS.register_module()
class DetLocalVisualizer(Visualizer):
    """Draws ground truth and predictions.

    Class names and, where given, colours come from ``dataset_meta``: ``classes`` and ``palette``.

    Args:
        name: Name of the instance.
        image: (H, W, 3) RGB, for mmengine's own drawing methods.
        vis_backends: Where pictures go that have no file of their own.
        save_dir: Folder of the backends.
        bbox_color: RGB of all boxes, or one for each class; each class has its own if None.
        text_color: RGB of names; black or white, whichever is readable, if None.
        mask_color: RGB of all masks, or one for each class; as ``bbox_color`` if None.
        line_width: Of boxes, in pixels of the picture; by its size if None.
        alpha: Opacity of masks, in [0, 1].
    """

    def __init__(
        self,
        name: str = "visualizer",
        image: NDArray[np.uint8] | None = None,
        vis_backends: Sequence[Any] | dict[str, Any] | None = None,
        save_dir: str | None = None,
        bbox_color: Colour | Sequence[Colour] | None = None,
        text_color: Colour | None = None,
        mask_color: Colour | Sequence[Colour] | None = None,
        line_width: int | None = None,
        alpha: float = 0.4,
    ) -> None:
        backends = [vis_backends] if isinstance(vis_backends, dict) else list(vis_backends or ())
        # mmengine writes into the dicts it is given; the config they come from is saved with the run.
        backends = [_own(backend) if isinstance(backend, dict) else backend for backend in backends]
        super().__init__(name=name, image=image, vis_backends=backends, save_dir=save_dir)
        self.bbox_color = _colours(bbox_color, "bbox_color")
        self.mask_color = _colours(mask_color, "mask_color")
        self.text_color = text_color
        self.line_width = line_width
        self.alpha = alpha

    @master_only
    def add_datasample(
        self,
        name: str,
        image: NDArray[np.uint8],
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | Path | None = None,
        pred_score_thr: float = 0.3,
        step: int = 0,
    ) -> None:
        """Draw ground truth beside predictions, each only if asked for and there.

        Args:
            name: Of the picture in the backends.
            image: (H, W, 3) RGB, the image that the boxes are in pixels of.
            data_sample: ``gt_instances`` and ``pred_instances``.
            draw_gt: Whether to draw ground truth.
            draw_pred: Whether to draw predictions.
            show: Open a window.
            wait_time: Seconds the window stays open; 0 is until it is closed.
            out_file: Where to write the picture; to the backends if None and ``show`` is not set.
            pred_score_thr: Predictions of lower score are left out.
            step: Step of the picture in the backends.
        """
        sides = []
        if draw_gt and data_sample is not None and "gt_instances" in data_sample:
            sides.append(("ground truth", self._draw(image, data_sample.gt_instances)))
        if draw_pred and data_sample is not None and "pred_instances" in data_sample:
            predicted = data_sample.pred_instances.cpu()
            sides.append(("predicted", self._draw(image, predicted[predicted.scores >= pred_score_thr])))
        if len(sides) > 1:
            picture = contact_sheet([captioned(side, caption) for caption, side in sides], columns=2)
        else:
            picture = sides[0][1] if sides else image
        self.set_image(picture)
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            Path(out_file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(out_file)
        elif not show:
            self.add_image(name, picture, step)

    def _draw(self, image: NDArray[np.uint8], instances: InstanceData) -> NDArray[np.uint8]:
        meta = self.dataset_meta or {}
        colours = self.bbox_color or _colours(meta.get("palette"), "palette")
        return draw_instances(
            image,
            np.asarray(_to_list(instances.bboxes), dtype=float).reshape(-1, 4),
            _to_list(instances.labels),
            meta.get("classes", ()),
            scores=_to_list(instances.scores) if "scores" in instances else None,
            masks=_masks(instances),
            colours=colours,
            mask_colours=self.mask_color,
            text_colour=self.text_color,
            line_width=self.line_width,
            mask_opacity=self.alpha,
        )


def _to_list(values: Any) -> list[Any]:
    return values.detach().cpu().tolist() if isinstance(values, torch.Tensor) else np.asarray(values).tolist()


def _masks(instances: InstanceData) -> NDArray[np.bool_] | None:
    """(D, H, W), of a tensor, an array, a mask class of detkit's, or run lengths."""
    if "masks" not in instances:
        return None
    masks = instances.masks
    if hasattr(masks, "to_ndarray"):
        masks = masks.to_ndarray()
    if isinstance(masks, (list, tuple)):
        masks = decode_run_lengths(masks)
    return np.asarray(masks.detach().cpu() if isinstance(masks, torch.Tensor) else masks).astype(bool)


def _own(backend: dict[str, Any]) -> dict[str, Any]:
    """A copy with the class that detkit has under the name; outside of a run mmengine looks for its own only."""
    kind = backend.get("type")
    return {**backend, "type": find(kind, VISBACKENDS) or kind} if isinstance(kind, str) else dict(backend)


def _colours(given: Any, argument: str) -> list[Colour] | None:
    """One colour or several as a list."""
    if given is None:
        return None
    several = list(given) if isinstance(given[0], (list, tuple)) else [given]
    for colour in several:
        if len(colour) != 3 or not all(isinstance(channel, int) and 0 <= channel <= 255 for channel in colour):
            raise ValueError(f"{argument}: RGB of three numbers up to 255, or a list of such, expected, got {given!r}")
    return [(r, g, b) for r, g, b in several]
