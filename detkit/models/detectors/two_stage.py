"""A detector of two stages: proposals, then their classes, boxes and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.models.dense_heads.prediction.postprocess import PROPOSAL_CFG_KEYS, DenseTestCfg
from detkit.registry import MODELS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals
from detkit.task_modules.samplers.roi_outputs import statistics_kept

__all__ = ["TwoStageDetector"]

Cfg = Mapping[str, Any]
MODES = ("loss", "predict", "tensor")


@MODELS.register_module()
class TwoStageDetector(BaseModel):
    """Backbone, neck, a head that proposes regions and one that looks at each.

    Args:
        backbone: Registered backbone.
        neck: Registered neck; None has none.
        rpn_head: Registered dense head that proposes regions of any class; None takes the proposals that come with
            the data samples (Fast R-CNN).
        roi_head: Registered RoI head.
        train_cfg: ``rpn`` and ``rcnn``, what the heads need in training, and ``rpn_proposal``, which proposals the
            second learns from.
        test_cfg: ``rpn`` and ``rcnn``, what the heads need in prediction.
        data_preprocessor: Registered data preprocessor.
        init_cfg: Initialisation.

    Raises:
        TypeError: A head is no config.
        ValueError: There is no RoI head, or ``rpn_head`` does not read ``rpn_proposal``.
    """

    train_cfg_keys: Mapping[str, Any] = {"rpn": "rpn_head", "rpn_proposal": PROPOSAL_CFG_KEYS, "rcnn": "roi_head"}
    test_cfg_keys: Mapping[str, Any] = {"rpn": "rpn_head", "rcnn": "roi_head"}

    def __init__(
        self,
        backbone: Cfg,
        neck: Cfg | None = None,
        rpn_head: Cfg | None = None,
        roi_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        data_preprocessor: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        name = type(self).__name__
        if roi_head is None:
            raise ValueError(f"{name}: roi_head is missing")
        for head, cfg in (("rpn_head", rpn_head), ("roi_head", roi_head)):
            if cfg is not None and not isinstance(cfg, Mapping):
                raise TypeError(f"{name}: {head}: a config dict with a 'type' was expected, got {cfg!r}")
            for key in ("train_cfg", "test_cfg"):
                if cfg is not None and cfg.get(key) is not None:
                    raise ValueError(f"{name}: {head}.{key} is not read; set {key} of the detector")
        check_keys(train_cfg, tuple(self.train_cfg_keys), "train_cfg")
        check_keys(test_cfg, tuple(self.test_cfg_keys), "test_cfg")
        train_cfg, test_cfg = train_cfg or {}, test_cfg or {}
        preprocessor = MODELS.build(data_preprocessor or {"type": "DetDataPreprocessor"})
        super().__init__(data_preprocessor=preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        self.rpn_head = None
        if rpn_head is not None:
            # Objects have one class here; a head of several would give each proposal a class.
            cfg = {"num_classes": 1, **rpn_head, "train_cfg": train_cfg.get("rpn"), "test_cfg": test_cfg.get("rpn")}
            if cfg["num_classes"] != 1:
                raise ValueError(f"{name}: rpn_head.num_classes must be 1, got {cfg['num_classes']}")
            self.rpn_head = MODELS.build(cfg)
        self.has_proposal_cfg = "rpn_proposal" in train_cfg
        has_thresholds = isinstance(getattr(self.rpn_head, "test_cfg", None), DenseTestCfg)
        reads_it = has_thresholds or hasattr(self.rpn_head, "loss_and_predict")
        if self.has_proposal_cfg and self.rpn_head is not None and not reads_it:
            head = type(self.rpn_head).__name__
            raise ValueError(f"{name}: train_cfg.rpn_proposal is not read by {head}; leave it out")
        self.proposal_cfg = DenseTestCfg.of(train_cfg.get("rpn_proposal", test_cfg.get("rpn")), PROPOSAL_CFG_KEYS)
        self.roi_head = MODELS.build({**roi_head, "train_cfg": train_cfg.get("rcnn"), "test_cfg": test_cfg.get("rcnn")})

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images (N, 3, H, W)."""
        features = self.backbone(batch_inputs)
        return features if self.neck is None else self.neck(features)

    def forward(
        self, inputs: Tensor, data_samples: Sequence[DetDataSample] | None = None, mode: str = "tensor"
    ) -> dict[str, Tensor] | Sequence[DetDataSample] | tuple[Any, ...]:
        """Losses, predictions or raw outputs.

        Args:
            inputs: Preprocessed images (N, 3, H, W).
            data_samples: Of the images; needed but for ``tensor``.
            mode: ``loss``, ``predict`` or ``tensor``.
        """
        if mode not in MODES:
            raise ValueError(f"{type(self).__name__}: mode {mode!r} is not one of {', '.join(map(repr, MODES))}")
        if mode == "tensor":
            return self._raw(inputs, data_samples)
        if data_samples is None:
            raise ValueError(f"{type(self).__name__}: mode {mode!r} needs data_samples")
        return self.loss(inputs, data_samples) if mode == "loss" else self.predict(inputs, data_samples)

    def _raw(self, inputs: Tensor, data_samples: Sequence[DetDataSample] | None) -> tuple[Any, ...]:
        features = self.extract_feat(inputs)
        if data_samples is None:
            facts = {"img_shape": tuple(inputs.shape[2:]), "scale_factor": (1.0, 1.0)}
            data_samples = [DetDataSample(metainfo=facts) for _ in inputs]
        return self.roi_head(features, self._proposals(features, data_samples), data_samples)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Named losses of images (N, 3, H, W), of both stages."""
        features = self.extract_feat(batch_inputs)
        losses: dict[str, Tensor] = {}
        proposals: Proposals | Sequence[InstanceData]
        if self.rpn_head is None:
            proposals = self._given(batch_data_samples)
        elif hasattr(self.rpn_head, "loss_and_predict"):
            losses, proposals = self.rpn_head.loss_and_predict(features, batch_data_samples, self.proposal_cfg)
        else:
            # Any other dense head of one class: it runs twice.
            samples = [_of_one_class(sample) for sample in batch_data_samples]
            losses = self.rpn_head.loss(features, samples)
            losses = {name if "rpn" in name else f"rpn_{name}": value for name, value in losses.items()}
            with torch.no_grad(), statistics_kept(self.rpn_head), self._thresholds_of_training():
                proposals = self.rpn_head.predict(features, samples, rescale=False)
        return losses | self.roi_head.loss(features, proposals, batch_data_samples)

    @contextmanager
    def _thresholds_of_training(self) -> Iterator[None]:
        """Let a dense head predict by ``train_cfg.rpn_proposal``, where that is given, as by its ``test_cfg``."""
        head: Any = self.rpn_head
        if not self.has_proposal_cfg:
            yield
            return
        own, head.test_cfg = head.test_cfg, self.proposal_cfg
        try:
            yield
        finally:
            head.test_cfg = own

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> Sequence[DetDataSample]:
        """The data samples with ``pred_instances``; boxes in the original frame where ``rescale``."""
        features = self.extract_feat(batch_inputs)
        proposals = self._proposals(features, batch_data_samples)
        results = self.roi_head.predict(features, proposals, batch_data_samples, rescale=rescale)
        for sample, instances in zip(batch_data_samples, results, strict=True):
            sample.pred_instances = instances
        return batch_data_samples

    def _proposals(
        self, features: Sequence[Tensor], samples: Sequence[DetDataSample]
    ) -> Proposals | Sequence[InstanceData]:
        if self.rpn_head is None:
            return self._given(samples)
        return self.rpn_head.predict(features, samples, rescale=False)

    def _given(self, samples: Sequence[DetDataSample]) -> Sequence[InstanceData]:
        missing = [
            str(sample.get("img_path", index)) for index, sample in enumerate(samples) if "proposals" not in sample
        ]
        if missing:
            raise ValueError(
                f"{type(self).__name__}: without an rpn_head each data sample needs proposals (proposal_file of the "
                f"dataset, LoadProposals); missing in {missing[0]}"
            )
        return [sample.proposals for sample in samples]


def _of_one_class(sample: DetDataSample) -> DetDataSample:
    """The sample with all labels 0, sharing everything else."""
    same = copy(sample)
    objects = InstanceData(bboxes=sample.gt_instances.bboxes, labels=torch.zeros_like(sample.gt_instances.labels))
    same.gt_instances = objects
    return same
