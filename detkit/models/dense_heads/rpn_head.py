"""Region proposal network, Ren et al., https://arxiv.org/abs/1506.01497, section 3.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.losses.rpn_loss import rpn_losses
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, Candidates, DenseTestCfg, detections
from detkit.models.dense_heads.prediction.proposals import level_candidates, propose
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_loss
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals

__all__ = ["RPNHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RPNHead(BaseModule):
    """Whether an anchor holds an object of any class, and where its box is.

    Args:
        in_channels: Channels of each level.
        num_classes: 1, objects of any class.
        init_cfg: Initialisation.
        num_convs: Convolutions before both predictions.
        feat_channels: Their channels.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        loss_cls: Classification loss.
        loss_bbox: Box loss.
        train_cfg: ``assigner``, ``sampler``, ``allowed_border``, ``pos_weight``; None at test time.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: Another number of classes or convolutions, or parts that do not fit.
    """

    train_cfg_keys = ANCHOR_TRAIN_CFG_KEYS
    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        num_convs: int = 1,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg or {"type": "Normal", "layer": "Conv2d", "std": 0.01})
        if num_classes != 1:
            raise ValueError(f"RPNHead: num_classes must be 1, as objects have no class here; got {num_classes}")
        if num_convs < 1:
            raise ValueError(f"RPNHead: num_convs must be at least 1, got {num_convs}")
        self.prior_generator = TASK_UTILS.build(
            anchor_generator
            or {"type": "AnchorGenerator", "scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]}
        )
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DeltaXYWHBBoxCoder"})
        # A coder of one's own need not say that it makes four numbers of a box.
        self.encode_size = getattr(self.bbox_coder, "encode_size", 4)
        self.reg_decoded_bbox = reg_decoded_bbox
        self.loss_cls = MODELS.build(loss_cls or {"type": "CrossEntropyLoss", "use_sigmoid": True})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "SmoothL1Loss", "beta": 1.0 / 9.0})
        if not getattr(self.loss_cls, "use_sigmoid", False):
            raise ValueError("RPNHead: loss_cls must have use_sigmoid=True; an anchor has one score, that of an object")
        check_coder(self.bbox_coder, "boxes", "RPNHead")
        check_loss(self.loss_cls, ["labels"], "RPNHead", "loss_cls")
        check_box_loss(self.loss_bbox, reg_decoded_bbox, "RPNHead")
        self.train_cfg = AnchorTrainCfg.of(train_cfg, "RPNHead")
        self.test_cfg = DenseTestCfg.of(test_cfg)

        num_anchors = self.prior_generator.num_base_priors[0]
        if num_convs == 1:
            self.rpn_conv: nn.Module = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
        else:
            widths = [in_channels] + [feat_channels] * (num_convs - 1)
            self.rpn_conv = nn.Sequential(*(ConvModule(width, feat_channels, 3, padding=1) for width in widths))
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * self.encode_size, 1)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N, A, H_l, W_l) and encoded boxes (N, A * 4, H_l, W_l) of levels (N, in_channels, H_l, W_l)."""
        features = [F.relu(self.rpn_conv(level)) for level in x]
        return [self.rpn_cls(level) for level in features], [self.rpn_reg(level) for level in features]

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_rpn_cls`` and ``loss_rpn_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l).

        Beside them, to be logged, the sampled anchors per image: ``num_pos_anchors`` and ``num_neg_anchors``.
        """
        cls_scores, bbox_preds = self(x)
        return self._losses(cls_scores, bbox_preds, batch_data_samples)

    def _losses(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        anchors = torch.cat(levels)
        logits = flatten_levels(cls_scores, 1)  # (N, A, 1)
        deltas = flatten_levels(bbox_preds, self.encode_size)  # (N, A, 4)
        inputs = self.train_cfg.inputs(
            levels, lambda: self.bbox_coder.decode(anchors.expand_as(deltas), deltas), logits
        )
        coder = None if self.reg_decoded_bbox else self.bbox_coder
        targets = self.train_cfg.targets(
            levels, self.prior_generator, sizes, batch_data_samples, 1, inputs, coder, one_class=True
        )
        decoder = self.bbox_coder if self.reg_decoded_bbox else None
        return rpn_losses(logits.squeeze(-1), deltas, anchors, targets, self.loss_cls, self.loss_bbox, decoder)

    def loss_and_predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], proposal_cfg: DenseTestCfg | None = None
    ) -> tuple[dict[str, Tensor], Proposals]:
        """Losses as of :meth:`loss`, and the proposals that a second stage is to learn from.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: Of N images.
            proposal_cfg: Thresholds of the proposals; None takes ``test_cfg``.
        """
        cls_scores, bbox_preds = self(x)
        losses = self._losses(cls_scores, bbox_preds, batch_data_samples)
        cfg = self.test_cfg if proposal_cfg is None else proposal_cfg
        with torch.no_grad():
            candidates = self._candidates(cls_scores, bbox_preds, batch_data_samples, cfg)
        return losses, propose(candidates, cfg)

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Proposals of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,) of 0, best first.

        Boxes of different levels do not suppress each other.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        cls_scores, bbox_preds = self(x)
        candidates = self._candidates(cls_scores, bbox_preds, batch_data_samples, self.test_cfg)
        metas = [sample.metainfo for sample in batch_data_samples]
        found = detections(candidates, metas, self.test_cfg, rescale)
        for proposals in found:
            proposals.labels = torch.zeros_like(proposals.labels)
        return found

    def _candidates(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        batch_data_samples: Sequence[DetDataSample],
        cfg: DenseTestCfg,
    ) -> Candidates:
        shapes = [tuple(sample.metainfo["img_shape"][:2]) for sample in batch_data_samples]
        levels = self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device)

        def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
            return self.bbox_coder.decode(anchors, deltas, max_shape=shapes)

        return level_candidates(cls_scores, bbox_preds, levels, decode, cfg, self.encode_size)
