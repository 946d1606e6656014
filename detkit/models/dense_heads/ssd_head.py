"""Head of SSD, Liu et al., https://arxiv.org/abs/1512.02325."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets, anchor_targets, valid_anchors
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_box_loss,
    check_coder,
    check_loss,
    dense_sampler,
)
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["SSDHead", "hardest_negatives"]

Cfg = Mapping[str, Any]


def hardest_negatives(losses: Tensor, negative: Tensor, count: Tensor) -> Tensor:
    """Sum of the ``count`` (N,) largest losses of the negatives of each image, (N,); all of them where these are fewer.

    The count may stay on its device: losses are ranked, and a rank is compared with it.

    Args:
        losses: (N, A), >= 0.
        negative: (N, A) bool.
        count: (N,) int64.
    """
    ranked = torch.where(negative, losses, 0.0).sort(dim=1, descending=True).values
    rank = torch.arange(losses.shape[1], device=losses.device)
    return (ranked * (rank < count.unsqueeze(1))).sum(dim=1)


@MODELS.register_module()
class SSDHead(BaseModule):
    """One convolution per level classifies anchors and one regresses their boxes; only hard negatives are learnt.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions before that one.
        feat_channels: Their channels.
        use_depthwise: Split each convolution into one of each channel and one of each pixel (SSDLite).
        conv_cfg: Convolution layers.
        norm_cfg: Norm layers; None has none.
        act_cfg: Activations; None has none.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; ``neg_pos_ratio``, how many negatives
            are learnt for each positive; ``smoothl1_beta``. None at test time.
        test_cfg: See :class:`DenseTestCfg`.
        init_cfg: Initialisation.
        loss_cls: Classification loss with a value for each anchor, over a softmax whose last channel is background;
            None is cross entropy.
        loss_bbox: Box loss; None is smooth L1 with ``smoothl1_beta``, which no other loss reads.

    Raises:
        ValueError: ``num_classes`` below 1, levels that differ in number, a classification loss of sigmoids, or an
            assigner that this head cannot serve.
    """

    train_cfg_keys = (
        "assigner",
        "sampler",
        "smoothl1_beta",
        "allowed_border",
        "pos_weight",
        "neg_pos_ratio",
        "debug",
    )
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int = 80,
        in_channels: Sequence[int] = (512, 1024, 512, 256, 256, 256),
        stacked_convs: int = 0,
        feat_channels: int = 256,
        use_depthwise: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Xavier", "layer": "Conv2d", "distribution": "uniform", "bias": 0})
        if num_classes < 1:
            raise ValueError(f"SSDHead: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.reg_decoded_bbox = reg_decoded_bbox
        self.prior_generator = TASK_UTILS.build(anchor_generator or _default_anchors())
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DeltaXYWHBBoxCoder"})
        num_anchors = self.prior_generator.num_base_priors
        if len(num_anchors) != len(in_channels):
            raise ValueError(f"SSDHead: anchors of {len(num_anchors)} levels, but {len(in_channels)} in_channels")

        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        self.assigner = TASK_UTILS.build(train_cfg["assigner"]) if "assigner" in train_cfg else None
        self.assigner_inputs = check_assigner(self.assigner, ["num_level_priors"], "SSDHead")
        self.sampler = dense_sampler(train_cfg.get("sampler"), "SSDHead")
        self.allowed_border = train_cfg.get("allowed_border", -1)
        self.pos_weight = train_cfg.get("pos_weight", -1)
        self.neg_pos_ratio = train_cfg.get("neg_pos_ratio", 3)
        # Not by the names of the arguments: they are set to None from outside to make MMDetection's head predict.
        self.loss_of_labels = MODELS.build(loss_cls or {"type": "CrossEntropyLoss"})
        if getattr(self.loss_of_labels, "use_sigmoid", False):
            raise ValueError(f"SSDHead: loss_cls must be one over a softmax, got {loss_cls} with use_sigmoid")
        beta = train_cfg.get("smoothl1_beta", 1.0)
        self.loss_of_boxes = MODELS.build(loss_bbox or {"type": "SmoothL1Loss", "beta": beta})
        check_coder(self.bbox_coder, "boxes", "SSDHead")
        check_loss(self.loss_of_labels, ["labels"], "SSDHead", "loss_cls")
        check_box_loss(self.loss_of_boxes, reg_decoded_bbox, "SSDHead")
        self.test_cfg = DenseTestCfg.of(test_cfg)

        layers: dict[str, Any] = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(
                _convs(channels, count * outputs, stacked_convs, feat_channels, use_depthwise, layers)
                for channels, count in zip(in_channels, num_anchors, strict=True)
            )
            for outputs in (num_classes + 1, 4)
        )

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A * (C + 1), H_l, W_l) and encoded boxes (N, A * 4, H_l, W_l) of levels (N, C_l, H_l, W_l)."""
        cls_scores = [convs(level) for convs, level in zip(self.cls_convs, x, strict=True)]
        bbox_preds = [convs(level) for convs, level in zip(self.reg_convs, x, strict=True)]
        return cls_scores, bbox_preds

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, C_l, H_l, W_l)."""
        if self.assigner is None:
            raise ValueError("SSDHead: training needs train_cfg with an assigner")
        logits, deltas, levels, sizes = self._flat_outputs(x)
        anchors = torch.cat(levels)
        offered = {"num_level_priors": [len(level) for level in levels]}
        metas = [sample.metainfo for sample in batch_data_samples]
        targets = anchor_targets(
            anchors,
            GroundTruth.from_samples(batch_data_samples),
            valid_anchors(anchors, self.prior_generator, sizes, metas, self.allowed_border),
            self.assigner,
            self.sampler,
            None if self.reg_decoded_bbox else self.bbox_coder,
            self.num_classes,
            self.pos_weight,
            {name: offered[name] for name in self.assigner_inputs},
        )
        return self._losses(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), anchors, targets)

    def _losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: AnchorTargets) -> dict[str, Tensor]:
        """Both losses of logits (N, A, C + 1) and encoded boxes (N, A, 4) of anchors (A, 4)."""
        avg_factor = reduce_mean(targets.avg_factor)
        labels, label_weights = targets.labels.flatten(), targets.label_weights.flatten()
        of_anchors = self.loss_of_labels(logits.flatten(0, 1), labels, label_weights, reduction_override="none")
        of_anchors = of_anchors.view_as(targets.labels)
        positive = targets.labels < self.num_classes
        num_negative = self.neg_pos_ratio * positive.sum(dim=1)
        of_positives = torch.where(positive, of_anchors, 0.0).sum(dim=1)
        of_labels = of_positives + hardest_negatives(of_anchors, ~positive, num_negative)
        if self.reg_decoded_bbox:
            deltas = self.bbox_coder.decode(anchors.expand_as(deltas), deltas)
        weights = targets.bbox_weights.flatten().unsqueeze(-1).expand(-1, 4)
        of_boxes = self.loss_of_boxes(
            deltas.flatten(0, 1), targets.bbox_targets.flatten(0, 1), weights, avg_factor=avg_factor
        )
        return {"loss_cls": of_labels.sum() / avg_factor, "loss_bbox": of_boxes}

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, C_l, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        logits, deltas, levels, _ = self._flat_outputs(x)
        metas = [sample.metainfo for sample in batch_data_samples]
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        candidates = select_candidates(
            [level.softmax(dim=-1)[..., :-1] for level in logits],
            deltas,
            levels,
            lambda priors, boxes: self.bbox_coder.decode(priors, boxes, max_shape=shapes),
            self.test_cfg,
        )
        return detections(candidates, metas, self.test_cfg, rescale)

    def _flat_outputs(
        self, x: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[tuple[int, int]]]:
        """Per level logits (N, A_l, C + 1), encoded boxes (N, A_l, 4), anchors (A_l, 4), and height and width."""
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        return (
            [flatten_level(level, self.num_classes + 1) for level in cls_scores],
            [flatten_level(level, 4) for level in bbox_preds],
            self.prior_generator.grid_priors(sizes, device=cls_scores[0].device),
            sizes,
        )


def _convs(
    in_channels: int, outputs: int, stacked_convs: int, feat_channels: int, depthwise: bool, layers: dict[str, Any]
) -> nn.Sequential:
    """Layers from a level to its predictions."""
    tower = conv_tower(in_channels, feat_channels, stacked_convs, depthwise=depthwise, **layers)
    channels = feat_channels if stacked_convs > 0 else in_channels
    if not depthwise:
        return nn.Sequential(*tower, nn.Conv2d(channels, outputs, 3, padding=1))
    own = ConvModule(channels, channels, 3, padding=1, groups=channels, **layers)
    return nn.Sequential(*tower, own, nn.Conv2d(channels, outputs, 1))


def _default_anchors() -> dict[str, Any]:
    return {
        "type": "SSDAnchorGenerator",
        "scale_major": False,
        "input_size": 300,
        "strides": [8, 16, 32, 64, 100, 300],
        "ratios": ([2], [2, 3], [2, 3], [2, 3], [2], [2]),
        "basesize_ratio_range": (0.15, 0.9),
    }
