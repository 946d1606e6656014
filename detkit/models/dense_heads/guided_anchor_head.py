"""What heads of guided anchors share, Wang et al., https://arxiv.org/abs/1901.03278: targets, losses, candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_levels
from detkit.models.dense_heads.prediction.guided_anchors import guided_anchors
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets, anchor_targets
from detkit.models.dense_heads.targets.approx_squares import (
    approx_and_square_generators,
    approxs_of_squares,
    valid_squares,
)
from detkit.models.dense_heads.targets.guided_train_cfg import GUIDED_TRAIN_CFG_KEYS, GuidedTrainCfg
from detkit.models.dense_heads.targets.location_targets import location_targets
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_label_loss, check_loss
from detkit.models.dense_heads.targets.prior_targets import prior_targets
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import anchor_inside_flags

__all__ = ["GuidedAnchorHead", "GuidedMaps"]

Cfg = Mapping[str, Any]
# The location loss is divided by a 200th of all cells.
CELLS_PER_UNIT = 200


class GuidedMaps(NamedTuple):
    """What the layers say of each level.

    Attributes:
        cls_scores: Logits (N, C, H_l, W_l) of the anchor at each place.
        bbox_preds: Its encoded box (N, 4, H_l, W_l).
        shape_preds: Encoded width and height (N, 2, H_l, W_l) of the anchor.
        loc_preds: Logits (N, 1, H_l, W_l) of an anchor being worth having there.
    """

    cls_scores: list[Tensor]
    bbox_preds: list[Tensor]
    shape_preds: list[Tensor]
    loc_preds: list[Tensor]

    def places(self, threshold: float) -> list[Tensor]:
        """Of each level (N, 1, H_l, W_l) bool: is the location's probability at least ``threshold``?"""
        return [level.sigmoid() >= threshold for level in self.loc_preds]

    def masked(self, threshold: float) -> GuidedMaps:
        """The same with zeros for classes and boxes where the location's probability is below ``threshold``."""
        scores, boxes = (
            [torch.where(place, level, 0.0) for place, level in zip(self.places(threshold), levels, strict=True)]
            for levels in (self.cls_scores, self.bbox_preds)
        )
        return self._replace(cls_scores=scores, bbox_preds=boxes)

    def encoded(self) -> list[Tensor]:
        """Of each level (N, 2 + E, H_l, W_l): encoded shapes and boxes, see :meth:`GuidedAnchorHead.decoder`."""
        return [torch.cat(pair, dim=1) for pair in zip(self.shape_preds, self.bbox_preds, strict=True)]


class GuidedTargets(NamedTuple):
    """What A places of N images are to predict.

    Attributes:
        anchors: (N, A, 4) of the predicted shapes, without gradient.
        of_anchors: What these learn.
        squares: (A, 4).
        shaped: (N, A) bool, squares that learn a shape.
        shape_boxes: (N, A, 4) of the objects whose shape they learn; a square itself where there is none.
        shape_avg_factor: () what the shape loss is divided by.
        central: (N, A) bool, places in the middle of objects.
        loc_weights: (N, A).
    """

    anchors: Tensor
    of_anchors: AnchorTargets
    squares: Tensor
    shaped: Tensor
    shape_boxes: Tensor
    shape_avg_factor: Tensor
    central: Tensor
    loc_weights: Tensor


class GuidedAnchorHead(BaseModule):
    """At each place whether an anchor is worth having and of which shape; then, of that anchor, class and box.

    A head derives from it, and adds its layers and what it calls its losses.

    Args:
        num_classes: Classes without background.
        approx_anchor_generator: Registered prior generator of the shapes by which squares are assigned.
        square_anchor_generator: Registered prior generator of the squares, one per cell.
        anchor_coder: Registered box coder that makes anchors of squares.
        bbox_coder: Registered box coder.
        reg_decoded_bbox: Compute the box loss on boxes instead of their encoding (IoU losses).
        loc_filter_thr: Least probability of a location that is looked at in prediction, in [0, 1].
        train_cfg: See :class:`GuidedTrainCfg`; None at test time.
        loss_loc: Loss of locations.
        loss_shape: Loss of shapes, over boxes.
        loss_cls: Classification loss.
        loss_bbox: Box loss.
        init_cfg: Initialisation.

    Raises:
        ValueError: Parts that do not fit each other or the head.
    """

    train_cfg_keys = GUIDED_TRAIN_CFG_KEYS

    def __init__(
        self,
        num_classes: int,
        approx_anchor_generator: Cfg | None,
        square_anchor_generator: Cfg | None,
        anchor_coder: Cfg | None,
        bbox_coder: Cfg | None,
        reg_decoded_bbox: bool,
        loc_filter_thr: float,
        train_cfg: Cfg | None,
        loss_loc: Cfg | None,
        loss_shape: Cfg | None,
        loss_cls: Cfg | None,
        loss_bbox: Cfg | None,
        init_cfg: Cfg | Sequence[Cfg],
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if num_classes < 1:
            raise ValueError(f"{name}: num_classes must be at least 1, got {num_classes}")
        if not 0 <= loc_filter_thr <= 1:
            raise ValueError(f"{name}: loc_filter_thr must be in [0, 1], got {loc_filter_thr!r}")
        self.num_classes = num_classes
        self.reg_decoded_bbox = reg_decoded_bbox
        self.loc_filter_thr = loc_filter_thr
        self.approx_generator, self.prior_generator = approx_and_square_generators(
            approx_anchor_generator, square_anchor_generator, 8, 4, name
        )
        self.strides, self.base_size = _square_levels(self.approx_generator, name)
        self.anchor_coder = TASK_UTILS.build(anchor_coder or {"type": "DeltaXYWHBBoxCoder"})
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "DeltaXYWHBBoxCoder"})
        # A coder of one's own need not say that it makes four numbers of a box.
        self.encode_size = getattr(self.bbox_coder, "encode_size", 4)
        self.loss_loc = MODELS.build(loss_loc or {"type": "FocalLoss"})
        self.loss_shape = MODELS.build(loss_shape or {"type": "BoundedIoULoss", "beta": 0.2})
        self.loss_cls = MODELS.build(loss_cls or {"type": "CrossEntropyLoss", "use_sigmoid": True})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "SmoothL1Loss", "beta": 1.0})
        check_coder(self.anchor_coder, "boxes", name, "anchor_coder")
        check_coder(self.bbox_coder, "boxes", name)
        check_label_loss(self.loss_loc, name, "loss_loc")
        check_loss(self.loss_shape, ["boxes", "coordinates"], name, "loss_shape")
        check_loss(self.loss_cls, ["labels"], name, "loss_cls")
        check_box_loss(self.loss_bbox, reg_decoded_bbox, name)
        self.use_sigmoid_cls = getattr(self.loss_cls, "use_sigmoid", False)
        # A softmax has a channel for the background, the last.
        self.cls_out_channels = num_classes if self.use_sigmoid_cls else num_classes + 1
        self.train_cfg = GuidedTrainCfg.of(train_cfg, name)

    def targets(
        self, maps: GuidedMaps, batch_data_samples: Sequence[DetDataSample], one_class: bool = False
    ) -> GuidedTargets:
        """What all places of all images are to predict.

        Args:
            maps: Of the layers.
            batch_data_samples: Of N images.
            one_class: Whether every object is of the one class that the head knows, whatever its label.

        Raises:
            ValueError: There is no assigner, or a sampler adds objects to the anchors.
        """
        cfg = self.train_cfg
        if cfg.anchors.assigner is None:
            raise ValueError(f"{type(self).__name__}: training needs train_cfg with assigner and ga_assigner")
        sizes, device = featmap_sizes(maps.cls_scores), maps.cls_scores[0].device
        truth = GroundTruth.from_samples(batch_data_samples)
        if one_class:
            truth = replace(truth, labels=torch.zeros_like(truth.labels))
        metas = [sample.metainfo for sample in batch_data_samples]
        levels = self.prior_generator.grid_priors(sizes, device=device)
        squares = torch.cat(levels)  # (A, 4)
        anchors = guided_anchors(squares, flatten_levels(maps.shape_preds, 2).detach(), self.anchor_coder)
        approxs = approxs_of_squares(self.approx_generator, sizes, len(squares), device)
        border = cfg.anchors.allowed_border
        valid = valid_squares(approxs, self.approx_generator, sizes, metas, border)
        offered = {"approxs": approxs, "num_level_priors": [len(level) for level in levels]}
        shapes = prior_targets(
            squares,
            squares,
            truth,
            valid,
            cfg.shape_assigner,
            cfg.shape_sampler,
            self.num_classes,
            inputs={name: offered[name] for name in cfg.shape_inputs},
        )
        if border >= 0:
            assert valid is not None
            inside = [
                anchor_inside_flags(own, flags, meta["img_shape"], border)
                for own, flags, meta in zip(anchors, valid, metas, strict=True)
            ]
            valid = torch.stack(inside)
        deltas = flatten_levels(maps.bbox_preds, self.encode_size)
        of_anchors = anchor_targets(
            anchors,
            truth,
            valid,
            cfg.anchors.assigner,
            cfg.anchors.sampler,
            None if self.reg_decoded_bbox else self.bbox_coder,
            self.num_classes,
            cfg.anchors.pos_weight,
            cfg.anchors.inputs(
                levels,
                lambda: self.bbox_coder.decode(anchors, deltas),
                flatten_levels(maps.cls_scores, self.cls_out_channels),
                self.activate,
            ),
        )
        central, loc_weights = location_targets(
            truth, sizes, self.strides, self.base_size, cfg.center_ratio, cfg.ignore_ratio
        )
        return GuidedTargets(
            anchors, of_anchors, squares, shapes.positive, shapes.bboxes, shapes.avg_factor, central, loc_weights
        )

    def location_and_shape_losses(self, maps: GuidedMaps, targets: GuidedTargets) -> tuple[Tensor, Tensor]:
        """Losses () of all locations and of the shapes of the sampled squares."""
        places = flatten_levels(maps.loc_preds, 1).flatten(0, 1)
        of_locations = self.loss_loc(
            places,
            # The one class of a location is label 0; a label beyond the classes is background.
            torch.where(targets.central, 0, 1).flatten(),
            targets.loc_weights.flatten(),
            avg_factor=len(places) / CELLS_PER_UNIT,
        )
        shaped = targets.shaped.unsqueeze(-1)
        boxes = guided_anchors(targets.squares, flatten_levels(maps.shape_preds, 2), self.anchor_coder)
        of_shapes = self.loss_shape(
            boxes.flatten(0, 1),
            targets.shape_boxes.flatten(0, 1),
            shaped.float().expand_as(boxes).flatten(0, 1),
            avg_factor=reduce_mean(targets.shape_avg_factor, least=1),
        )
        return of_locations, of_shapes

    def activate(self, logits: Tensor) -> Tensor:
        """Probabilities (N, A, C) of logits, background left out."""
        return logits.sigmoid() if self.use_sigmoid_cls else logits.softmax(dim=-1)[..., :-1]

    def decoder(self, batch_data_samples: Sequence[DetDataSample]) -> Callable[[Tensor, Tensor], Tensor]:
        """``(squares (N, K, 4), encoded (N, K, 2 + E)) -> boxes (N, K, 4)``, clipped to the images."""
        shapes = [tuple(sample.metainfo["img_shape"][:2]) for sample in batch_data_samples]

        def decode(squares: Tensor, encoded: Tensor) -> Tensor:
            anchors = guided_anchors(squares, encoded[..., :2], self.anchor_coder)
            boxes: Tensor = self.bbox_coder.decode(anchors, encoded[..., 2:], max_shape=shapes)
            return boxes

        return decode


def _square_levels(generator: Any, head: str) -> tuple[list[float], float]:
    """Strides of the levels, and the side of the squares of the first one in pixels.

    Raises:
        ValueError: Cells are not square, or the generator has no octaves.
    """
    if any(width != height for width, height in generator.strides):
        raise ValueError(f"{head}: strides must be the same in x and y, got {generator.strides}")
    if getattr(generator, "octave_base_scale", None) is None:
        raise ValueError(f"{head}: approx_anchor_generator needs octave_base_scale, by which objects find their level")
    strides = [width for width, _ in generator.strides]
    return strides, generator.octave_base_scale * strides[0]
