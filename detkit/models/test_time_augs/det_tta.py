"""Test-time augmentation: predictions of flipped and resized views of an image, merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.prediction.postprocess import suppress_images
from detkit.ops import NMSCfg
from detkit.ops.values import check_limit
from detkit.registry import MODELS, check_keys, where
from detkit.structures import DetDataSample
from detkit.structures.boxes import bbox_flip

__all__ = ["DetTTAModel"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class DetTTAModel(BaseTTAModel):
    """Predicts each view that ``TestTimeAug`` has made of an image, and suppresses across them.

    Args:
        tta_cfg: ``nms``, see :meth:`NMSCfg.of`, and ``max_per_img``, detections kept of an image (a negative number
            keeps all). Default: IoU 0.5, 100.
        module: The detector, or its config.
        data_preprocessor: Of the detector, where its config has none.

    Raises:
        ValueError: ``module`` is missing, or a wrong value in ``tta_cfg``.
    """

    def __init__(
        self,
        tta_cfg: Cfg | None = None,
        module: nn.Module | Cfg | None = None,
        data_preprocessor: Cfg | None = None,
    ) -> None:
        if module is None:
            raise ValueError("DetTTAModel: module is missing, the detector that predicts")
        if not isinstance(module, nn.Module):
            default = {} if data_preprocessor is None else {"data_preprocessor": data_preprocessor}
            module = MODELS.build({**default, **module})
        super().__init__(module)
        check_keys(tta_cfg, ("nms", "max_per_img"), "tta_cfg")
        chosen = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100, **(tta_cfg or {})}
        check_limit(f"{where()}.tta_cfg.max_per_img".lstrip("."), chosen["max_per_img"])
        self.nms = NMSCfg.of(chosen["nms"], "tta_cfg.nms")
        self.max_per_img = chosen["max_per_img"]

    def merge_preds(self, data_samples_list: Sequence[Sequence[DetDataSample]]) -> list[DetDataSample]:
        """The first view of each image, with ``pred_instances`` of all of them.

        Args:
            data_samples_list: Of each image its views, whose predictions are in the frame of the original image, as
                far as it is not flipped.

        Raises:
            ValueError: Predictions with masks, which cannot be merged.
        """
        views = [(index, view) for index, samples in enumerate(data_samples_list) for view in samples]
        found: list[InstanceData] = [view.pred_instances for _, view in views]
        if any("masks" in instances for instances in found):
            raise ValueError("DetTTAModel: predictions with masks cannot be merged; leave out --tta")
        labels = torch.cat([instances.labels for instances in found])
        merged = suppress_images(
            torch.cat([unflipped(view) for _, view in views]),
            torch.cat([instances.scores for instances in found]),
            labels,
            torch.cat([torch.full_like(view.pred_instances.labels, index) for index, view in views]),
            len(data_samples_list),
            self.nms,
            self.max_per_img,
        )
        firsts = [samples[0] for samples in data_samples_list]
        for sample, instances in zip(firsts, merged, strict=True):
            sample.pred_instances = instances
        return firsts


def unflipped(view: DetDataSample) -> Tensor:
    """Predicted boxes (D, 4) of a view in the frame of the original image."""
    boxes = view.pred_instances.bboxes
    return bbox_flip(boxes, view.ori_shape, view.flip_direction) if view.get("flip") else boxes
