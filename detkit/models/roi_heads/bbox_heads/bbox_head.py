"""Class and box of a region, Fast R-CNN, https://arxiv.org/abs/1504.08083."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_loss
from detkit.models.layers.predictors import linear_predictor
from detkit.models.roi_heads.bbox_heads.box_targets import BoxTargets, box_targets, of_own_class
from detkit.models.roi_heads.bbox_heads.class_losses import class_channels, class_losses, class_scores
from detkit.models.roi_heads.bbox_heads.conv_fc import conv_branch, fc_branch
from detkit.models.roi_heads.prediction import RoITestCfg, clip_to_images, roi_detections
from detkit.models.roi_heads.sampling import SampledRoIs
from detkit.registry import MODELS, TASK_UTILS
from detkit.structures.proposals import Proposals

__all__ = ["BBoxHead", "ConvFCBBoxHead", "SCNetBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class BBoxHead(BaseModule):
    """Shared layers, layers of each task, and a linear layer for each::

                                    /-> cls convs -> cls fcs -> class
        shared convs -> shared fcs
                                    \\-> reg convs -> reg fcs -> box

    Args:
        with_avg_pool: Average over the region before its first linear layer.
        with_cls: Predict classes.
        with_reg: Predict boxes.
        roi_feat_size: Height and width of a region's features.
        in_channels: Their channels.
        num_classes: Classes of objects; background is one more.
        bbox_coder: Registered box coder.
        predict_box_type: ``hbox``, the only one.
        reg_class_agnostic: One box for all classes.
        reg_decoded_bbox: Compare boxes instead of their encoding (IoU losses).
        reg_predictor_cfg: Registered last layer of boxes.
        cls_predictor_cfg: Registered last layer of classes.
        loss_cls: Registered loss of labels in [0, C], C is background. It may bring channels, scores and accuracy of
            its own (``custom_cls_channels`` ...).
        loss_bbox: Registered loss of boxes.
        init_cfg: Initialisation.
        num_shared_convs: Layers; None is what the class has.
        num_shared_fcs: Layers; None is what the class has.
        num_cls_convs: Layers.
        num_cls_fcs: Layers.
        num_reg_convs: Layers.
        num_reg_fcs: Layers.
        conv_out_channels: Channels of the convolutions.
        fc_out_channels: Features of the linear layers.
        conv_cfg: Registered convolution.
        norm_cfg: Registered norm after each convolution.

    Raises:
        ValueError: Nothing to predict, layers that do not fit, or parts that do not.
    """

    shared_convs_default = 0
    shared_fcs_default = 0

    def __init__(
        self,
        with_avg_pool: bool = False,
        with_cls: bool = True,
        with_reg: bool = True,
        roi_feat_size: int | tuple[int, int] = 7,
        in_channels: int = 256,
        num_classes: int = 80,
        bbox_coder: Cfg | None = None,
        predict_box_type: str = "hbox",
        reg_class_agnostic: bool = False,
        reg_decoded_bbox: bool = False,
        reg_predictor_cfg: Cfg | None = None,
        cls_predictor_cfg: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        num_shared_convs: int | None = None,
        num_shared_fcs: int | None = None,
        num_cls_convs: int = 0,
        num_cls_fcs: int = 0,
        num_reg_convs: int = 0,
        num_reg_fcs: int = 0,
        conv_out_channels: int = 256,
        fc_out_channels: int = 1024,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg if init_cfg is not None else initialisation(with_cls, with_reg))
        name = type(self).__name__
        if not (with_cls or with_reg):
            raise ValueError(f"{name}: with_cls or with_reg must be True, or there is nothing to predict")
        if predict_box_type != "hbox":
            raise ValueError(f"{name}: predict_box_type {predict_box_type!r} is not 'hbox', the only one")
        num_shared_convs = self.shared_convs_default if num_shared_convs is None else num_shared_convs
        num_shared_fcs = self.shared_fcs_default if num_shared_fcs is None else num_shared_fcs
        if num_shared_fcs > 0 and (num_cls_convs > 0 or num_reg_convs > 0):
            raise ValueError(f"{name}: num_cls_convs and num_reg_convs need num_shared_fcs=0, got {num_shared_fcs}")
        self.with_avg_pool = with_avg_pool
        self.with_cls = with_cls
        self.with_reg = with_reg
        self.num_classes = num_classes
        self.reg_class_agnostic = reg_class_agnostic
        self.reg_decoded_bbox = reg_decoded_bbox
        self._build_parts(bbox_coder, loss_cls, loss_bbox)

        rows, columns = (roi_feat_size, roi_feat_size) if isinstance(roi_feat_size, int) else roi_feat_size
        area = 1 if with_avg_pool else rows * columns
        self.shared_convs, width = conv_branch(num_shared_convs, in_channels, conv_out_channels, conv_cfg, norm_cfg)
        shared_width = width * area if num_shared_fcs > 0 else width
        self.shared_fcs, width = fc_branch(num_shared_fcs, shared_width, fc_out_channels)
        area = 1 if num_shared_fcs > 0 else area
        self.cls_convs, cls_width = conv_branch(num_cls_convs, width, conv_out_channels, conv_cfg, norm_cfg)
        self.cls_fcs, cls_width = fc_branch(num_cls_fcs, cls_width * area, fc_out_channels)
        self.reg_convs, reg_width = conv_branch(num_reg_convs, width, conv_out_channels, conv_cfg, norm_cfg)
        self.reg_fcs, reg_width = fc_branch(num_reg_fcs, reg_width * area, fc_out_channels)
        if with_cls:
            self.fc_cls = linear_predictor(cls_predictor_cfg, cls_width, class_channels(self.loss_cls, num_classes))
        if with_reg:
            num_boxes = 1 if reg_class_agnostic else num_classes
            self.fc_reg = linear_predictor(reg_predictor_cfg, reg_width, num_boxes * self.encode_size)

    def _build_parts(self, bbox_coder: Cfg | None, loss_cls: Cfg | None, loss_bbox: Cfg | None) -> None:
        name = type(self).__name__
        default_coder = {
            "type": "DeltaXYWHBBoxCoder",
            "target_means": [0.0, 0.0, 0.0, 0.0],
            "target_stds": [0.1, 0.1, 0.2, 0.2],
        }
        self.bbox_coder = TASK_UTILS.build(bbox_coder or default_coder)
        # A coder of one's own need not say that it makes four numbers of a box.
        self.encode_size = getattr(self.bbox_coder, "encode_size", 4)
        self.loss_cls = MODELS.build(loss_cls or {"type": "CrossEntropyLoss"})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "SmoothL1Loss"})
        check_coder(self.bbox_coder, "boxes", name)
        check_loss(self.loss_cls, ["labels", "labels with channels of its own"], name, "loss_cls")
        check_box_loss(self.loss_bbox, self.reg_decoded_bbox, name)

    def forward(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Logits (R, C + 1) and encoded boxes (R, 4) or (R, C * 4) of features (R, in_channels, rows, columns)."""
        return self.outputs(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """What both tasks share, of features (R, in_channels, rows, columns)."""
        for conv in self.shared_convs:
            x = conv(x)
        if len(self.shared_fcs) > 0:
            x = self._flat(x)
        for fc in self.shared_fcs:
            x = fc(x).relu()
        return x

    def outputs(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Logits and encoded boxes, as of :meth:`forward`, of what :meth:`embed` gives."""
        cls_score = self.fc_cls(self._branch(x, self.cls_convs, self.cls_fcs)) if self.with_cls else None
        bbox_pred = self.fc_reg(self._branch(x, self.reg_convs, self.reg_fcs)) if self.with_reg else None
        return cls_score, bbox_pred

    def _branch(self, x: Tensor, convs: nn.ModuleList, fcs: nn.ModuleList) -> Tensor:
        for conv in convs:
            x = conv(x)
        x = self._flat(x)
        for fc in fcs:
            x = fc(x).relu()
        return x

    def _flat(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x
        return x.mean(dim=(2, 3)) if self.with_avg_pool else x.flatten(1)

    def get_targets(self, sampled: SampledRoIs, rcnn_train_cfg: Any) -> BoxTargets:
        """Targets of sampled regions."""
        coder = None if self.reg_decoded_bbox else self.bbox_coder
        return box_targets(sampled, coder, rcnn_train_cfg.pos_weight)

    def loss_and_target(
        self,
        cls_score: Tensor | None,
        bbox_pred: Tensor | None,
        sampled: SampledRoIs,
        rcnn_train_cfg: Any,
    ) -> dict[str, Any]:
        """Losses of sampled regions, ``loss_bbox``, and what they were to learn, ``bbox_targets``.

        Args:
            cls_score: Logits (N * R, C + 1).
            bbox_pred: Encoded boxes (N * R, 4) or (N * R, C * 4).
            sampled: R regions of each of N images.
            rcnn_train_cfg: With ``pos_weight``.
        """
        targets = self.get_targets(sampled, rcnn_train_cfg)
        num_rois = reduce_mean(sampled.valid.sum().float(), least=1)
        losses = self.loss(cls_score, bbox_pred, sampled.rois, *targets, num_rois=num_rois)
        return {"loss_bbox": losses, "bbox_targets": targets}

    def loss(
        self,
        cls_score: Tensor | None,
        bbox_pred: Tensor | None,
        rois: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor | None,
        bbox_weights: Tensor | None,
        reduction_override: str | None = None,
        num_rois: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_bbox``, and the accuracy ``acc`` in percent (1,), to be logged.

        Args:
            cls_score: Logits (R, C + 1).
            bbox_pred: Encoded boxes (R, 4) or (R, C * 4).
            rois: (R, 5).
            labels: (R,) int64 in [0, C], C is background.
            label_weights: (R,), 0 where a region is not to be learnt.
            bbox_targets: (R, 4), boxes where ``reg_decoded_bbox``, else encoded.
            bbox_weights: (R, 4).
            reduction_override: Used instead of the losses' own.
            num_rois: What the box loss is divided by; None is R.
        """
        losses: dict[str, Tensor] = {}
        if cls_score is not None:
            losses |= class_losses(self.loss_cls, cls_score, labels, label_weights, reduction_override)
        if bbox_pred is not None and bbox_targets is not None and bbox_weights is not None:
            positive = ((labels >= 0) & (labels < self.num_classes)).unsqueeze(1)
            predicted = of_own_class(bbox_pred, labels, self.encode_size).float()
            if self.reg_decoded_bbox:
                predicted = self.bbox_coder.decode(rois[:, 1:], predicted)
            # What is not an object is its own target, so that its unused loss is finite.
            predicted = torch.where(positive, predicted, bbox_targets)
            losses["loss_bbox"] = self.loss_bbox(
                predicted,
                bbox_targets,
                bbox_weights * positive,
                avg_factor=len(labels) if num_rois is None else num_rois,
                reduction_override=reduction_override,
            )
        return losses

    def scores(self, cls_score: Tensor) -> Tensor:
        """Scores (..., C) of logits (..., C + 1); the background has none."""
        return class_scores(self.loss_cls, cls_score, self.num_classes)

    def predict(
        self,
        proposals: Proposals,
        scores: Tensor,
        bbox_pred: Tensor | None,
        metas: Sequence[Mapping[str, Any]],
        cfg: RoITestCfg,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,) and ``labels`` (D,), best first.

        Args:
            proposals: P of each of N images.
            scores: (N * P, C), see :meth:`scores`.
            bbox_pred: Encoded boxes (N * P, 4) or (N * P, C * 4); None leaves the proposals where they are.
            metas: Image facts.
            cfg: Thresholds.
            rescale: Return boxes in the frame of the original image.
        """
        boxes, num_proposals = proposals.boxes.flatten(0, 1), proposals.boxes.shape[1]

        def decode(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
            own = boxes[rows]
            if bbox_pred is not None:
                own = self.bbox_coder.decode(own, of_own_class(bbox_pred[rows], labels, self.encode_size))
            if getattr(self.bbox_coder, "clip_border", True):
                own = clip_to_images(own, rows // max(num_proposals, 1), metas)
            return own, None

        per_image = scores.unflatten(0, proposals.valid.shape)
        return roi_detections(per_image, proposals.valid, decode, metas, cfg, rescale)

    def regress_by_class(self, priors: Tensor, label: Tensor, bbox_pred: Tensor, img_meta: Mapping[str, Any]) -> Tensor:
        """Boxes (R, 4) of regions (R, 4) of one image, each by what was predicted for its label (R,)."""
        own = of_own_class(bbox_pred, label, self.encode_size)
        return self.bbox_coder.decode(priors, own, max_shape=img_meta["img_shape"])

    @torch.no_grad()
    def refine(
        self,
        sampled: SampledRoIs,
        cls_score: Tensor,
        bbox_pred: Tensor,
        metas: Sequence[Mapping[str, Any]],
    ) -> Proposals:
        """The sampled regions as proposals for a next stage, moved to their predicted boxes.

        Those with an object move by its label, the others by their best class. Objects that were added as proposals
        are left out.

        Args:
            sampled: R regions of each of N images.
            cls_score: Logits (N * R, C + 1).
            bbox_pred: Encoded boxes (N * R, 4) or (N * R, C * 4).
            metas: Image facts.
        """
        custom = getattr(self.loss_cls, "custom_activation", False)
        # A softmax keeps the order of logits, but for those that it rounds to 0.
        scores = self.scores(cls_score) if custom else cls_score[:, : self.num_classes]
        labels = torch.where(sampled.positive, sampled.labels, scores.argmax(dim=1).view_as(sampled.labels))
        own = of_own_class(bbox_pred, labels.flatten(), self.encode_size).float().view_as(sampled.boxes)
        shapes = [tuple(meta["img_shape"][:2]) for meta in metas]
        boxes = self.bbox_coder.decode(sampled.boxes, own, max_shape=shapes)
        valid = sampled.valid & ~sampled.is_gt
        return Proposals(torch.where(valid.unsqueeze(-1), boxes, 0.0), torch.zeros_like(boxes[..., 0]), valid)


def initialisation(with_cls: bool = True, with_reg: bool = True) -> list[dict[str, Any]]:
    """How the layers of a box head begin."""
    cfg: list[dict[str, Any]] = []
    if with_cls:
        cfg.append({"type": "Normal", "std": 0.01, "override": {"name": "fc_cls"}})
    if with_reg:
        cfg.append({"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}})
    branches = [{"name": name} for name in ("shared_fcs", "cls_fcs", "reg_fcs")]
    cfg.append({"type": "Xavier", "distribution": "uniform", "override": branches})
    return cfg


@MODELS.register_module()
class ConvFCBBoxHead(BBoxHead):
    """A box head whose config says which layers it has; arguments as of :class:`BBoxHead`."""


@MODELS.register_module()
class SCNetBBoxHead(BBoxHead):
    """A :class:`ConvFCBBoxHead` by the name that SCNet's configs have (https://arxiv.org/abs/2012.10150)."""


@MODELS.register_module()
class Shared2FCBBoxHead(BBoxHead):
    """Two linear layers for both tasks (FPN, https://arxiv.org/abs/1612.03144); arguments as of :class:`BBoxHead`."""

    shared_fcs_default = 2


@MODELS.register_module()
class Shared4Conv1FCBBoxHead(BBoxHead):
    """Four convolutions and a linear layer for both tasks (https://arxiv.org/abs/1803.08494, section 5.2);
    arguments as of :class:`BBoxHead`."""

    shared_convs_default = 4
    shared_fcs_default = 1
