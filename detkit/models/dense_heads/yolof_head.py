"""Head of YOLOF, Chen et al., https://arxiv.org/abs/2103.09460."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level
from detkit.models.dense_heads.prediction.objectness import implicit_objectness
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_targets import anchor_targets, valid_anchors
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_box_loss,
    check_coder,
    check_label_loss,
    dense_sampler,
)
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["YOLOFHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class YOLOFHead(BaseModule):
    """Anchors of one level; a score has an objectness in it that no loss looks at.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of the level, and of all convolutions.
        num_cls_convs: Convolutions before the classes.
        num_reg_convs: Convolutions before boxes and objectness.
        norm_cfg: Their norm layers.
        feat_channels: Accepted for MMDetection's configs; the head has ``in_channels`` throughout.
        anchor_generator: Registered prior generator of one level.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Accepted for MMDetection's configs; the box loss is always one on boxes.
        loss_cls: Classification loss, of sigmoids.
        loss_bbox: Box loss.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; None at test time.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.

    Raises:
        ValueError: ``num_classes`` below 1, anchors of several levels, a classification loss of a softmax, or an
            assigner that this head cannot serve.
    """

    train_cfg_keys = ("assigner", "sampler", "allowed_border", "pos_weight", "debug")
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_cls_convs: int = 2,
        num_reg_convs: int = 4,
        norm_cfg: Cfg | None = None,
        feat_channels: int | None = None,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = True,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"YOLOFHead: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.prior_generator = TASK_UTILS.build(anchor_generator or _default_anchors())
        if self.prior_generator.num_levels != 1:
            raise ValueError(f"YOLOFHead: anchors must be of one level, got {self.prior_generator.num_levels} levels")
        self.bbox_coder = TASK_UTILS.build(bbox_coder or _default_coder())
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss"})
        check_coder(self.bbox_coder, "boxes", "YOLOFHead")
        check_label_loss(self.loss_cls, "YOLOFHead")
        check_box_loss(self.loss_bbox, True, "YOLOFHead")

        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        self.assigner = TASK_UTILS.build(train_cfg["assigner"]) if "assigner" in train_cfg else None
        self.assigner_inputs = check_assigner(self.assigner, ["num_level_priors", "decoder_priors"], "YOLOFHead")
        self.sampler = dense_sampler(train_cfg.get("sampler"), "YOLOFHead")
        self.allowed_border = train_cfg.get("allowed_border", -1)
        self.pos_weight = train_cfg.get("pos_weight", -1)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        self.cls_subnet, self.bbox_subnet = (
            nn.Sequential(
                *conv_tower(in_channels, in_channels, count, norm_cfg=norm_cfg or {"type": "BN", "requires_grad": True})
            )
            for count in (num_cls_convs, num_reg_convs)
        )
        num_anchors = self.prior_generator.num_base_priors[0]
        self.cls_score, self.bbox_pred, self.object_pred = (
            nn.Conv2d(in_channels, num_anchors * outputs, 3, padding=1) for outputs in (num_classes, 4, 1)
        )

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A * C, H, W) and encoded boxes (N, A * 4, H, W) of the one level (N, in_channels, H, W)."""
        (level,) = x
        logits = self.cls_score(self.cls_subnet(level))
        reg_feat = self.bbox_subnet(level)
        by_anchor = logits.unflatten(1, (-1, self.num_classes))  # (N, A, C, H, W)
        scores = implicit_objectness(by_anchor, self.object_pred(reg_feat).unsqueeze(2))
        return [scores.flatten(1, 2)], [self.bbox_pred(reg_feat)]

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the one level in ``x`` (N, in_channels, H, W)."""
        if self.assigner is None:
            raise ValueError("YOLOFHead: training needs train_cfg with an assigner")
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        (anchors,) = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        boxes = self.bbox_coder.decode(anchors.expand(len(cls_scores[0]), -1, 4), flatten_level(bbox_preds[0], 4))
        offered = {"num_level_priors": [len(anchors)], "decoder_priors": boxes}
        metas = [sample.metainfo for sample in batch_data_samples]
        targets = anchor_targets(
            anchors,
            GroundTruth.from_samples(batch_data_samples),
            valid_anchors(anchors, self.prior_generator, sizes, metas, self.allowed_border),
            self.assigner,
            self.sampler,
            None,
            self.num_classes,
            self.pos_weight,
            {name: offered[name] for name in self.assigner_inputs},
        )
        predicted, wanted, weights = boxes, targets.bbox_targets, targets.bbox_weights
        extra = None if targets.assigned is None else targets.assigned.extra
        if extra is not None and "pos_predicted_boxes" in extra:
            # An anchor has one label, but as many boxes to learn as objects have chosen it.
            names = ("pos_predicted_boxes", "target_boxes", "pos_idx")
            predicted, wanted, weights = (extra[name] for name in names)
        avg_factor = reduce_mean(targets.avg_factor)
        return {
            "loss_cls": self.loss_cls(
                flatten_level(cls_scores[0], self.num_classes).flatten(0, 1),
                targets.labels.flatten(),
                targets.label_weights.flatten(),
                avg_factor=avg_factor,
            ),
            "loss_bbox": self.loss_bbox(
                predicted.flatten(0, 1),
                wanted.flatten(0, 1),
                weights.flatten().float().unsqueeze(-1).expand(-1, 4),
                avg_factor=avg_factor,
            ),
        }

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: The one level (N, in_channels, H, W).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, bbox_preds = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [flatten_level(level, self.num_classes).sigmoid() for level in cls_scores],
            [flatten_level(level, 4) for level in bbox_preds],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device),
            lambda priors, boxes: self.bbox_coder.decode(priors, boxes, max_shape=shapes),
            self.test_cfg,
        )
        return detections(candidates, metas, self.test_cfg, rescale)


def _default_anchors() -> dict[str, Any]:
    return {"type": "AnchorGenerator", "ratios": [1.0], "scales": [1, 2, 4, 8, 16], "strides": [32]}


def _default_coder() -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "add_ctr_clamp": True, "ctr_clamp": 32}


def _default_init() -> dict[str, Any]:
    rare = {"type": "Normal", "name": "cls_score", "std": 0.01, "bias_prob": 0.01}
    return {"type": "Normal", "layer": "Conv2d", "std": 0.01, "override": rare}
