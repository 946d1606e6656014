"""Head of ATSS, Zhang et al., https://arxiv.org/abs/1912.02424."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.atss_layers import ATSSLayers, one_anchor_of_a_cell
from detkit.models.dense_heads.losses.box_quality import centerness_of_anchors, quality_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_loss, check_score_loss
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample
from detkit.task_modules.coders import encode_finite

__all__ = ["ATSSHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class ATSSHead(ATSSLayers):
    """Each anchor predicts a class, a box, and how central in the object it lies.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        pred_kernel_size: Kernel of the layers that predict, odd.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None is GN with 32 groups.
        reg_decoded_bbox: Compute the box loss on boxes (IoU losses); else on their encoding.
        loss_centerness: Centerness loss.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        loss_cls: Classification loss.
        loss_bbox: Box loss.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; None at test time.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: ``num_classes`` below 1, or an assigner that this head cannot serve.
    """

    train_cfg_keys = ANCHOR_TRAIN_CFG_KEYS
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        pred_kernel_size: int = 3,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        reg_decoded_bbox: bool = True,
        loss_centerness: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"ATSSHead: num_classes must be at least 1, got {num_classes}")
        generator = TASK_UTILS.build(anchor_generator or one_anchor_of_a_cell())
        coder = TASK_UTILS.build(bbox_coder or {"type": "DeltaXYWHBBoxCoder", "target_stds": (0.1, 0.1, 0.2, 0.2)})
        of_labels = MODELS.build(loss_cls or {"type": "FocalLoss"})
        use_sigmoid = getattr(of_labels, "use_sigmoid", False)
        # A softmax has a channel for the background, the last. A coder of one's own need not say its size.
        scores, encode_size = num_classes if use_sigmoid else num_classes + 1, getattr(coder, "encode_size", 4)
        super().__init__(
            scores,
            encode_size,
            generator.num_base_priors[0],
            len(generator.strides),
            in_channels,
            feat_channels,
            stacked_convs,
            pred_kernel_size,
            conv_cfg,
            norm_cfg,
            init_cfg,
        )
        self.num_classes = num_classes
        self.cls_out_channels, self.encode_size, self.use_sigmoid_cls = scores, encode_size, use_sigmoid
        self.reg_decoded_bbox = reg_decoded_bbox
        self.prior_generator, self.bbox_coder = generator, coder
        self.loss_cls = of_labels
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 2.0})
        self.loss_centerness = MODELS.build(loss_centerness or {"type": "CrossEntropyLoss", "use_sigmoid": True})
        check_coder(coder, "boxes", "ATSSHead")
        check_loss(self.loss_cls, ["labels"], "ATSSHead", "loss_cls")
        check_box_loss(self.loss_bbox, reg_decoded_bbox, "ATSSHead")
        check_score_loss(self.loss_centerness, "ATSSHead", "loss_centerness")
        self.train_cfg = AnchorTrainCfg.of(train_cfg, "ATSSHead")
        self.test_cfg = DenseTestCfg.of(test_cfg)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox``, ``loss_centerness`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds, centernesses = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        logits = flatten_levels(cls_scores, self.cls_out_channels)  # (N, A, C)
        deltas = flatten_levels(bbox_preds, self.encode_size)  # (N, A, 4)
        anchors = torch.cat(levels).expand(len(deltas), -1, -1)  # (N, A, 4)
        inputs = self.train_cfg.inputs(levels, lambda: self.bbox_coder.decode(anchors, deltas), logits, self._activate)
        targets = self.train_cfg.targets(
            levels, self.prior_generator, sizes, batch_data_samples, self.num_classes, inputs
        )
        avg_factor = reduce_mean(targets.avg_factor)
        boxes = torch.where(targets.bbox_weights.unsqueeze(-1) > 0, targets.bbox_targets, anchors)
        central = centerness_of_anchors(anchors, boxes) * targets.bbox_weights
        if self.reg_decoded_bbox:
            predicted, wanted = self.bbox_coder.decode(anchors, deltas), boxes
        else:
            predicted, wanted = deltas, encode_finite(self.bbox_coder, anchors, boxes)
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1), targets.labels.flatten(), targets.label_weights.flatten(), avg_factor=avg_factor
            ),
            "loss_bbox": quality_box_loss(self.loss_bbox, predicted, wanted, central),
            "loss_centerness": self.loss_centerness(
                flatten_levels(centernesses, 1).flatten(),
                central.flatten(),
                targets.bbox_weights.flatten(),
                avg_factor=avg_factor,
            ),
        }

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, bbox_preds, centernesses = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [self._activate(flatten_level(level, self.cls_out_channels)) for level in cls_scores],
            [flatten_level(level, self.encode_size) for level in bbox_preds],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device),
            lambda priors, boxes: self.bbox_coder.decode(priors, boxes, max_shape=shapes),
            self.test_cfg,
            [flatten_level(level, 1).squeeze(-1).sigmoid() for level in centernesses],
        )
        return detections(candidates, metas, self.test_cfg, rescale)

    def _activate(self, logits: Tensor) -> Tensor:
        """Scores (N, A, C) of logits, background left out."""
        return logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(dim=-1)[..., :-1]
