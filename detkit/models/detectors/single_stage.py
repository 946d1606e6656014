"""A detector of one stage: backbone, neck, dense head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from torch import Tensor

from detkit.registry import MODELS
from detkit.structures import DetDataSample

__all__ = ["SingleStageDetector"]

Cfg = Mapping[str, Any]
MODES = ("loss", "predict", "tensor")


@MODELS.register_module()
class SingleStageDetector(BaseModel):
    """Predicts from feature maps directly, without proposals.

    Args:
        backbone: Registered backbone.
        neck: Registered neck; None has none.
        bbox_head: Registered dense head; ``train_cfg`` and ``test_cfg`` are handed to it.
        train_cfg: What the head needs in training.
        test_cfg: What the head needs in prediction.
        data_preprocessor: Registered data preprocessor.
        init_cfg: Initialisation.

    Raises:
        ValueError: There is no head, or it has a ``train_cfg`` or ``test_cfg`` of its own.
    """

    def __init__(
        self,
        backbone: Cfg,
        neck: Cfg | None = None,
        bbox_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        data_preprocessor: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if bbox_head is None:
            raise ValueError(f"{type(self).__name__}: bbox_head is missing")
        for key in ("train_cfg", "test_cfg"):
            if bbox_head.get(key) is not None:
                raise ValueError(f"{type(self).__name__}: bbox_head.{key} is not read; set {key} of the detector")
        preprocessor = MODELS.build(data_preprocessor or {"type": "DetDataPreprocessor"})
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        self.bbox_head = MODELS.build({**bbox_head, "train_cfg": train_cfg, "test_cfg": test_cfg})

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images (N, 3, H, W)."""
        features = self.backbone(batch_inputs)
        return features if self.neck is None else self.neck(features)

    def forward(
        self, inputs: Tensor, data_samples: Sequence[DetDataSample] | None = None, mode: str = "tensor"
    ) -> dict[str, Tensor] | Sequence[DetDataSample] | tuple[list[Tensor], ...]:
        """Losses, predictions or raw outputs.

        Args:
            inputs: Preprocessed images (N, 3, H, W).
            data_samples: Of the images; needed but for ``tensor``.
            mode: ``loss``, ``predict`` or ``tensor``.
        """
        if mode == "tensor":
            return self.bbox_head(self.extract_feat(inputs))
        if mode not in MODES:
            raise ValueError(f"{type(self).__name__}: mode {mode!r} is not one of {', '.join(map(repr, MODES))}")
        if data_samples is None:
            raise ValueError(f"{type(self).__name__}: mode {mode!r} needs data_samples")
        return self.loss(inputs, data_samples) if mode == "loss" else self.predict(inputs, data_samples)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Named losses of images (N, 3, H, W)."""
        return self.bbox_head.loss(self.extract_feat(batch_inputs), batch_data_samples)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> Sequence[DetDataSample]:
        """The data samples with ``pred_instances``; boxes in the original frame where ``rescale``."""
        results = self.bbox_head.predict(self.extract_feat(batch_inputs), batch_data_samples, rescale=rescale)
        for sample, instances in zip(batch_data_samples, results, strict=True):
            sample.pred_instances = instances
        return batch_data_samples
