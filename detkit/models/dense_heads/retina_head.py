"""Head of RetinaNet, Lin et al., https://arxiv.org/abs/1708.02002."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.events import get_event_storage
from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.anchor_loss import anchor_losses
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_loss
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample

__all__ = ["RetinaHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RetinaHead(BaseModule):
    """Two towers of convolutions over each level: one classifies anchors, one regresses their boxes.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        feat_channels: Their channels.
        conv_cfg: Their convolution layers.
        norm_cfg: Their norm layers; None has none.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        loss_cls: Classification loss.
        loss_bbox: Box loss.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; None at test time.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.
        loss_normalizer: What the losses are divided by: ``num_pos``, the positives of the batch, at least one for each
            image (MMDetection); or a registered module that is given their number, such as
            ``dict(type='EMA', momentum=0.9, init=100)`` (Detectron2).

    Raises:
        ValueError: ``num_classes`` below 1, an unknown ``loss_normalizer``, or parts that do not fit.
    """

    train_cfg_keys = ANCHOR_TRAIN_CFG_KEYS
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        feat_channels: int = 256,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        loss_normalizer: str | Cfg = "num_pos",
    ) -> None:
        super().__init__(init_cfg or _default_init())
        name = type(self).__name__
        if num_classes < 1:
            raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.reg_decoded_bbox = reg_decoded_bbox
        self.prior_generator = TASK_UTILS.build(anchor_generator or _default_anchors())
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DeltaXYWHBBoxCoder"})
        # A coder of one's own need not say that it makes four numbers of a box.
        self.encode_size = getattr(self.bbox_coder, "encode_size", 4)
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "L1Loss"})
        if isinstance(loss_normalizer, str) and loss_normalizer != "num_pos":
            raise ValueError(
                f"{name}: loss_normalizer must be 'num_pos' or a module such as dict(type='EMA'), "
                f"got {loss_normalizer!r}"
            )
        self.loss_normalizer = None if isinstance(loss_normalizer, str) else MODELS.build(loss_normalizer)
        self.use_sigmoid_cls = getattr(self.loss_cls, "use_sigmoid", False)
        # A softmax has a channel for the background, the last.
        self.cls_out_channels = num_classes if self.use_sigmoid_cls else num_classes + 1

        check_coder(self.bbox_coder, "boxes", name)
        check_loss(self.loss_cls, ["labels"], name, "loss_cls")
        check_box_loss(self.loss_bbox, reg_decoded_bbox, name)
        self.train_cfg = AnchorTrainCfg.of(train_cfg, name)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        self.cls_convs, self.reg_convs = (
            conv_tower(in_channels, feat_channels, stacked_convs, conv_cfg=conv_cfg, norm_cfg=norm_cfg) for _ in "cr"
        )
        num_anchors = self.prior_generator.num_base_priors[0]
        features = feat_channels if stacked_convs > 0 else in_channels
        self.retina_cls = nn.Conv2d(features, num_anchors * self.cls_out_channels, 3, padding=1)
        self.retina_reg = nn.Conv2d(features, num_anchors * self.encode_size, 3, padding=1)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A * C, H_l, W_l) and encoded boxes (N, A * 4, H_l, W_l) of levels (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = [], []
        for level in x:
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(self.retina_cls(cls_feat))
            bbox_preds.append(self.retina_reg(reg_feat))
        return cls_scores, bbox_preds

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l).

        A training run also notes ``num_pos_anchors``, the positives per image of this process.
        """
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        anchors = torch.cat(levels)
        logits = flatten_levels(cls_scores, self.cls_out_channels)  # (N, A, C)
        boxes = flatten_levels(bbox_preds, self.encode_size)  # (N, A, 4)
        targets = self.train_cfg.targets(
            levels,
            self.prior_generator,
            sizes,
            batch_data_samples,
            self.num_classes,
            self.train_cfg.inputs(
                levels, lambda: self.bbox_coder.decode(anchors.expand_as(boxes), boxes), logits, self._activate
            ),
            None if self.reg_decoded_bbox else self.bbox_coder,
        )
        if self.training and not torch.compiler.is_compiling():
            num_positive = targets.bbox_weights.sum() / len(batch_data_samples)
            get_event_storage().put_scalar("num_pos_anchors", num_positive)
        of_labels, of_boxes = anchor_losses(
            logits,
            boxes,
            anchors,
            targets,
            self.loss_cls,
            self.loss_bbox,
            self._avg_factor(targets),
            self.bbox_coder if self.reg_decoded_bbox else None,
        )
        return {"loss_cls": of_labels, "loss_bbox": of_boxes}

    def _avg_factor(self, targets: AnchorTargets) -> Tensor:
        """What the losses are divided by, ()."""
        if self.loss_normalizer is None:
            return reduce_mean(targets.avg_factor)
        return self.loss_normalizer(targets.bbox_weights.sum())

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, bbox_preds = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [self._scores(flatten_level(level, self.cls_out_channels)) for level in cls_scores],
            [flatten_level(level, self.encode_size) for level in bbox_preds],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device),
            lambda priors, boxes: self.bbox_coder.decode(priors, boxes, max_shape=shapes),
            self.test_cfg,
            logits=self.use_sigmoid_cls,
        )
        return detections(candidates, metas, self.test_cfg, rescale)

    def _activate(self, logits: Tensor) -> Tensor:
        """Probabilities (N, A, C) of logits, background left out."""
        return logits.sigmoid() if self.use_sigmoid_cls else self._scores(logits)

    def _scores(self, logits: Tensor) -> Tensor:
        """Logits (N, A, C) of a sigmoid as they are, of a softmax the scores without the background."""
        return logits if self.use_sigmoid_cls else logits.softmax(dim=-1)[..., :-1]


def _default_anchors() -> dict[str, Any]:
    return {
        "type": "AnchorGenerator",
        "octave_base_scale": 4,
        "scales_per_octave": 3,
        "ratios": [0.5, 1.0, 2.0],
        "strides": [8, 16, 32, 64, 128],
    }


def _default_init() -> dict[str, Any]:
    # The bias makes every anchor start with a probability of 0.01 (section 4.1).
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01},
    }
