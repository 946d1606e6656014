"""A region proposal network of guided anchors, Wang et al., https://arxiv.org/abs/1901.03278, section 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.guided_anchor_head import GuidedAnchorHead, GuidedMaps
from detkit.models.dense_heads.layers.feature_adaption import FeatureAdaption
from detkit.models.dense_heads.losses.rpn_loss import rpn_losses
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import PROPOSAL_CFG_KEYS, DenseTestCfg
from detkit.models.dense_heads.prediction.proposals import level_candidates, proposals_of_images, propose
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.proposals import Proposals

__all__ = ["GARPNHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class GARPNHead(GuidedAnchorHead):
    """Whether the one anchor of a place holds an object of any class, and where its box is.

    Args:
        in_channels: Channels of each level.
        num_classes: 1, objects of any class.
        init_cfg: Initialisation.
        feat_channels: Channels of the layers.
        approx_anchor_generator: Registered prior generator of the shapes by which squares are assigned.
        square_anchor_generator: Registered prior generator of the squares, one per cell.
        anchor_coder: Registered box coder that makes anchors of squares.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        deform_groups: Groups of channels that look at an anchor's shape in a way of their own.
        loc_filter_thr: Least probability of a location that is looked at for proposals.
        train_cfg: See :class:`GuidedTrainCfg`; None at test time.
        test_cfg: See :class:`DenseTestCfg`; ``nms_post`` too.
        loss_loc: Loss of locations.
        loss_shape: Loss of shapes, over boxes.
        loss_cls: Classification loss.
        loss_bbox: Box loss.

    Raises:
        ValueError: Another number of classes, or parts that do not fit each other or the head.
    """

    test_cfg_keys = PROPOSAL_CFG_KEYS

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        approx_anchor_generator: Cfg | None = None,
        square_anchor_generator: Cfg | None = None,
        anchor_coder: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        reg_decoded_bbox: bool = False,
        deform_groups: int = 4,
        loc_filter_thr: float = 0.01,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        loss_loc: Cfg | None = None,
        loss_shape: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
    ) -> None:
        if num_classes != 1:
            raise ValueError(f"GARPNHead: num_classes must be 1, as objects have no class here; got {num_classes}")
        super().__init__(
            num_classes,
            approx_anchor_generator,
            square_anchor_generator,
            anchor_coder,
            bbox_coder,
            reg_decoded_bbox,
            loc_filter_thr,
            train_cfg,
            loss_loc,
            loss_shape,
            loss_cls,
            loss_bbox,
            init_cfg or _default_init(),
        )
        if not self.use_sigmoid_cls:
            raise ValueError(
                "GARPNHead: loss_cls must have use_sigmoid=True; an anchor has one score, that of an object"
            )
        self.test_cfg = DenseTestCfg.of(test_cfg, PROPOSAL_CFG_KEYS)
        self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
        self.conv_loc = nn.Conv2d(feat_channels, 1, 1)
        self.conv_shape = nn.Conv2d(feat_channels, 2, 1)
        self.feature_adaption = FeatureAdaption(feat_channels, feat_channels, deform_groups)
        self.conv_cls = nn.Conv2d(feat_channels, 1, 1)
        self.conv_reg = nn.Conv2d(feat_channels, self.encode_size, 1)

    def forward(self, x: Sequence[Tensor]) -> GuidedMaps:
        """Maps of levels (N, in_channels, H_l, W_l); in evaluation, zeros where no anchor is worth having."""
        maps = self._maps(x)
        return maps if self.training else maps.masked(self.loc_filter_thr)

    def _maps(self, x: Sequence[Tensor]) -> GuidedMaps:
        maps = GuidedMaps([], [], [], [])
        for level in x:
            features = F.relu(self.rpn_conv(level))
            shapes = self.conv_shape(features)
            maps.loc_preds.append(self.conv_loc(features))
            maps.shape_preds.append(shapes)
            features = self.feature_adaption(features, shapes)
            maps.cls_scores.append(self.conv_cls(features))
            maps.bbox_preds.append(self.conv_reg(features))
        return maps

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_rpn_cls``, ``loss_rpn_bbox``, ``loss_anchor_shape``, ``loss_anchor_loc``.

        Beside them, to be logged, the sampled anchors per image: ``num_pos_anchors`` and ``num_neg_anchors``.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: Of N images.
        """
        return self._losses(self._maps(x), batch_data_samples)

    def _losses(self, maps: GuidedMaps, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        targets = self.targets(maps, batch_data_samples, one_class=True)
        losses = rpn_losses(
            flatten_levels(maps.cls_scores, 1).squeeze(-1),
            flatten_levels(maps.bbox_preds, self.encode_size),
            targets.anchors,
            targets.of_anchors,
            self.loss_cls,
            self.loss_bbox,
            self.bbox_coder if self.reg_decoded_bbox else None,
        )
        of_locations, of_shapes = self.location_and_shape_losses(maps, targets)
        return {**losses, "loss_anchor_shape": of_shapes, "loss_anchor_loc": of_locations}

    def loss_and_predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], proposal_cfg: DenseTestCfg | None = None
    ) -> tuple[dict[str, Tensor], Proposals]:
        """Losses as of :meth:`loss`, and the proposals that a second stage is to learn from.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: Of N images.
            proposal_cfg: Thresholds of the proposals; None takes ``test_cfg``.
        """
        maps = self._maps(x)
        losses = self._losses(maps, batch_data_samples)
        return losses, self._propose(maps, batch_data_samples, self.test_cfg if proposal_cfg is None else proposal_cfg)

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
        found = self._propose(self._maps(x), batch_data_samples, self.test_cfg)
        return proposals_of_images(found, [sample.metainfo for sample in batch_data_samples], rescale)

    @torch.no_grad()
    def _propose(self, maps: GuidedMaps, batch_data_samples: Sequence[DetDataSample], cfg: DenseTestCfg) -> Proposals:
        # In training MMDetection looks at every place, as the places are not learnt yet.
        threshold = 0.0 if self.training else self.loc_filter_thr
        logits = [
            torch.where(place, level, -torch.inf)
            for place, level in zip(maps.places(threshold), maps.cls_scores, strict=True)
        ]
        candidates = level_candidates(
            logits,
            maps.encoded(),
            self.prior_generator.grid_priors(featmap_sizes(logits), device=logits[0].device),
            self.decoder(batch_data_samples),
            cfg,
            2 + self.encode_size,
        )
        return propose(candidates, cfg)


def _default_init() -> dict[str, Any]:
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": {"type": "Normal", "name": "conv_loc", "std": 0.01, "bias_prob": 0.01},
    }
