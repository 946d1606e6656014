"""Guided anchors on RetinaNet, Wang et al., https://arxiv.org/abs/1901.03278, section 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.guided_anchor_head import GuidedAnchorHead, GuidedMaps
from detkit.models.dense_heads.layers.feature_adaption import FeatureAdaption
from detkit.models.dense_heads.layers.towers import conv_tower
from detkit.models.dense_heads.losses.anchor_loss import anchor_losses
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.registry import MODELS
from detkit.structures import DetDataSample

__all__ = ["GARetinaHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class GARetinaHead(GuidedAnchorHead):
    """Two towers over each level: places and classes from one, shapes and boxes from the other.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        stacked_convs: Convolutions of each tower.
        conv_cfg: Convolution layers of the towers.
        norm_cfg: Norm layers of the towers; None has none.
        init_cfg: Initialisation.
        feat_channels: Channels of the towers.
        approx_anchor_generator: Registered prior generator of the shapes by which squares are assigned.
        square_anchor_generator: Registered prior generator of the squares, one per cell.
        anchor_coder: Registered box coder that makes anchors of squares.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        deform_groups: Groups of channels that look at an anchor's shape in a way of their own.
        loc_filter_thr: Least probability of a location that is looked at in prediction.
        train_cfg: See :class:`GuidedTrainCfg`; None at test time.
        test_cfg: See :class:`DenseTestCfg`.
        loss_loc: Loss of locations.
        loss_shape: Loss of shapes, over boxes.
        loss_cls: Classification loss.
        loss_bbox: Box loss.

    Raises:
        ValueError: Parts that do not fit each other or the head.
    """

    test_cfg_keys = TEST_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
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
        self.test_cfg = DenseTestCfg.of(test_cfg)
        self.cls_convs, self.reg_convs = (
            conv_tower(in_channels, feat_channels, stacked_convs, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            for _ in ("cls", "reg")
        )
        features = feat_channels if stacked_convs > 0 else in_channels
        self.conv_loc = nn.Conv2d(features, 1, 1)
        self.conv_shape = nn.Conv2d(features, 2, 1)
        self.feature_adaption_cls = FeatureAdaption(features, feat_channels, deform_groups)
        self.feature_adaption_reg = FeatureAdaption(features, feat_channels, deform_groups)
        self.retina_cls = nn.Conv2d(feat_channels, self.cls_out_channels, 3, padding=1)
        self.retina_reg = nn.Conv2d(feat_channels, self.encode_size, 3, padding=1)

    def forward(self, x: Sequence[Tensor]) -> GuidedMaps:
        """Maps of levels (N, in_channels, H_l, W_l); in evaluation, zeros where no anchor is worth having."""
        maps = self._maps(x)
        return maps if self.training else maps.masked(self.loc_filter_thr)

    def _maps(self, x: Sequence[Tensor]) -> GuidedMaps:
        maps = GuidedMaps([], [], [], [])
        for level in x:
            cls_feat = reg_feat = level
            for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
                cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
            shapes = self.conv_shape(reg_feat)
            maps.loc_preds.append(self.conv_loc(cls_feat))
            maps.shape_preds.append(shapes)
            maps.cls_scores.append(self.retina_cls(self.feature_adaption_cls(cls_feat, shapes)))
            maps.bbox_preds.append(self.retina_reg(self.feature_adaption_reg(reg_feat, shapes)))
        return maps

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_bbox``, ``loss_shape``, ``loss_loc`` of levels (N, in_channels, H_l, W_l)."""
        maps = self._maps(x)
        targets = self.targets(maps, batch_data_samples)
        of_labels, of_boxes = anchor_losses(
            flatten_levels(maps.cls_scores, self.cls_out_channels),
            flatten_levels(maps.bbox_preds, self.encode_size),
            targets.anchors,
            targets.of_anchors,
            self.loss_cls,
            self.loss_bbox,
            reduce_mean(targets.of_anchors.avg_factor),
            self.bbox_coder if self.reg_decoded_bbox else None,
        )
        of_locations, of_shapes = self.location_and_shape_losses(maps, targets)
        return {"loss_cls": of_labels, "loss_bbox": of_boxes, "loss_shape": of_shapes, "loss_loc": of_locations}

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, in_channels, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        maps = self._maps(x)
        candidates = select_candidates(
            self._scores(maps),
            [flatten_level(level, 2 + self.encode_size) for level in maps.encoded()],
            self.prior_generator.grid_priors(featmap_sizes(maps.cls_scores), device=maps.cls_scores[0].device),
            self.decoder(batch_data_samples),
            self.test_cfg,
            logits=self.use_sigmoid_cls,
        )
        return detections(candidates, [sample.metainfo for sample in batch_data_samples], self.test_cfg, rescale)

    def _scores(self, maps: GuidedMaps) -> list[Tensor]:
        """Per level (N, A_l, C): logits of a sigmoid or scores of a softmax, the least there is at places left out."""
        chosen = []
        for level, place in zip(maps.cls_scores, maps.places(self.loc_filter_thr), strict=True):
            flat = flatten_level(level, self.cls_out_channels)
            flat, least = (flat, -torch.inf) if self.use_sigmoid_cls else (self.activate(flat), 0.0)
            chosen.append(torch.where(place.flatten(1).unsqueeze(-1), flat, least))
        return chosen


def _default_init() -> dict[str, Any]:
    unlikely = {"type": "Normal", "std": 0.01, "bias_prob": 0.01}
    return {
        "type": "Normal",
        "layer": "Conv2d",
        "std": 0.01,
        "override": [{**unlikely, "name": "conv_loc"}, {**unlikely, "name": "retina_cls"}],
    }
