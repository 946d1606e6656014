"""Side-aware boundary localisation on RetinaNet, Wang et al., https://arxiv.org/abs/1912.04260."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.approx_squares import (
    approx_and_square_generators,
    approxs_of_squares,
    valid_squares,
)
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_coder,
    check_loss,
    check_score_loss,
    dense_sampler,
)
from detkit.models.dense_heads.targets.prior_targets import prior_targets
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["SABLRetinaHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class SABLRetinaHead(BaseModule):
    """One square per cell; each of its sides is first found among buckets and then moved.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        feat_channels: Channels of the towers.
        approx_anchor_generator: Registered prior generator of the shapes by which squares are assigned.
        square_anchor_generator: Registered prior generator of the squares, one per cell.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None has none.
        bbox_coder: Registered coder of buckets and offsets.
        reg_decoded_bbox: Accepted for MMDetection's configs; losses are on buckets and offsets.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; None at test time.
        test_cfg: See :class:`DenseTestCfg`.
        loss_cls: Classification loss.
        loss_bbox_cls: Loss over buckets.
        loss_bbox_reg: Loss over offsets.
        init_cfg: Initialisation.

    Raises:
        ValueError: Generators that do not fit each other, or an assigner that needs more than shapes.
    """

    train_cfg_keys = ("assigner", "sampler", "allowed_border", "pos_weight", "debug")
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        feat_channels: int = 256,
        approx_anchor_generator: Cfg | None = None,
        square_anchor_generator: Cfg | None = None,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox_cls: Cfg | None = None,
        loss_bbox_reg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg or _default_init())
        if num_classes < 1:
            raise ValueError(f"SABLRetinaHead: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.approx_generator, self.prior_generator = approx_and_square_generators(
            approx_anchor_generator, square_anchor_generator, 4, 8, "SABLRetinaHead"
        )
        self.bbox_coder = TASK_UTILS.build(
            bbox_coder or {"type": "BucketingBBoxCoder", "num_buckets": 14, "scale_factor": 3.0}
        )
        check_coder(self.bbox_coder, "boxes, as buckets and offsets", "SABLRetinaHead")
        # Each side of a square has half of the buckets.
        self.num_buckets = 4 * ((self.bbox_coder.num_buckets + 1) // 2)
        self.loss_cls = MODELS.build(loss_cls or {"type": "FocalLoss"})
        self.loss_bbox_cls = MODELS.build(
            loss_bbox_cls or {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.5}
        )
        self.loss_bbox_reg = MODELS.build(
            loss_bbox_reg or {"type": "SmoothL1Loss", "beta": 1.0 / 9.0, "loss_weight": 1.5}
        )
        check_loss(self.loss_cls, ["labels"], "SABLRetinaHead", "loss_cls")
        check_score_loss(self.loss_bbox_cls, "SABLRetinaHead", "loss_bbox_cls")
        check_loss(self.loss_bbox_reg, ["coordinates"], "SABLRetinaHead", "loss_bbox_reg")
        self.use_sigmoid_cls = getattr(self.loss_cls, "use_sigmoid", False)
        # A softmax has a channel for the background, the last.
        self.cls_out_channels = num_classes if self.use_sigmoid_cls else num_classes + 1

        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        self.assigner = TASK_UTILS.build(train_cfg["assigner"]) if "assigner" in train_cfg else None
        self.assigner_inputs = check_assigner(self.assigner, ["approxs", "num_level_priors"], "SABLRetinaHead")
        self.sampler = dense_sampler(train_cfg.get("sampler"), "SABLRetinaHead")
        self.allowed_border = train_cfg.get("allowed_border", -1)
        self.pos_weight = train_cfg.get("pos_weight", -1)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        self.cls_convs, self.reg_convs = (
            conv_tower(in_channels, feat_channels, stacked_convs, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.retina_cls = nn.Conv2d(features, self.cls_out_channels, 3, padding=1)
        self.retina_bbox_reg = nn.Conv2d(features, self.num_buckets, 3, padding=1)
        self.retina_bbox_cls = nn.Conv2d(features, self.num_buckets, 3, padding=1)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Logits (N, C, H_l, W_l), and of each level bucket logits and offsets, both (N, 4 S, H_l, W_l)."""
        cls_scores, bbox_preds = [], []
        for level in x:
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            cls_scores.append(self.retina_cls(cls_feat))
            bbox_preds.append((self.retina_bbox_cls(reg_feat), self.retina_bbox_reg(reg_feat)))
        return cls_scores, bbox_preds

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox_cls``, ``loss_bbox_reg`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        if self.assigner is None:
            raise ValueError("SABLRetinaHead: training needs train_cfg with an assigner")
        cls_scores, bbox_preds = self(x)
        sizes, device = featmap_sizes(cls_scores), cls_scores[0].device
        levels = self.prior_generator.grid_priors(sizes, device=device)
        squares = torch.cat(levels)  # (A, 4)
        approxs = approxs_of_squares(self.approx_generator, sizes, len(squares), device)
        offered = {"approxs": approxs, "num_level_priors": [len(level) for level in levels]}
        truth = GroundTruth.from_samples(batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        found = prior_targets(
            squares,
            squares,
            truth,
            valid_squares(approxs, self.approx_generator, sizes, metas, self.allowed_border),
            self.assigner,
            self.sampler,
            self.num_classes,
            self.pos_weight,
            {name: offered[name] for name in self.assigner_inputs},
        )
        targets = self.bbox_coder.encode(squares.expand_as(found.bboxes), found.bboxes)
        avg_factor = reduce_mean(found.avg_factor)

        logits = flatten_levels(cls_scores, self.cls_out_channels)
        buckets, offsets = (flatten_levels([pair[i] for pair in bbox_preds], self.num_buckets) for i in (0, 1))
        learnt = found.positive.unsqueeze(-1)
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1), found.labels.flatten(), found.label_weights.flatten(), avg_factor=avg_factor
            ),
            "loss_bbox_cls": self.loss_bbox_cls(
                buckets.flatten(0, 1),
                targets.labels.long().flatten(0, 1),
                (targets.label_weights * learnt).flatten(0, 1),
                avg_factor=avg_factor * self.num_buckets,
            ),
            "loss_bbox_reg": self.loss_bbox_reg(
                offsets.flatten(0, 1),
                targets.offsets.flatten(0, 1),
                (targets.offset_weights * learnt).flatten(0, 1),
                avg_factor=avg_factor * 4 * self.bbox_coder.offset_topk,
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
        cls_scores, bbox_preds = self(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]

        def decode(squares: Tensor, predicted: Tensor) -> Tensor:
            boxes, confidence = self.bbox_coder.decode(squares, predicted.chunk(2, dim=-1), max_shape=shapes)
            return torch.cat([boxes, confidence.unsqueeze(-1)], dim=-1)

        candidates = select_candidates(
            [self._activate(flatten_level(level, self.cls_out_channels)) for level in cls_scores],
            [torch.cat([flatten_level(part, self.num_buckets) for part in pair], dim=-1) for pair in bbox_preds],
            self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device),
            decode,
            self.test_cfg,
        )
        # How sure the buckets are is known only of decoded boxes.
        assert candidates.extra is not None
        candidates = replace(candidates, scores=candidates.scores * candidates.extra.squeeze(-1))
        return detections(candidates, metas, self.test_cfg, rescale)

    def _activate(self, logits: Tensor) -> Tensor:
        """Scores (N, A, C) of logits, background left out."""
        return logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(dim=-1)[..., :-1]


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "retina_cls", "std": 0.01, "bias_prob": 0.01},
    }
