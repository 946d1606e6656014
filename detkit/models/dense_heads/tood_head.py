"""Head of TOOD, Feng et al., https://arxiv.org/abs/2108.07755."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, Scale
from mmengine import MessageHub
from mmengine.model import BaseModule, bias_init_with_prob, normal_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.layers.atss_layers import one_anchor_generator
from detkit.models.dense_heads.layers.tood_layers import TaskDecomposition, geometric_mean_of_sigmoids, sample_boxes
from detkit.models.dense_heads.losses.box_quality import box_centers, centerness_of_anchors, quality_box_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level, flatten_levels
from detkit.models.dense_heads.prediction.log_size import exp_size
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets
from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_box_loss, check_coder, check_loss
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.boxes import distance2bbox

__all__ = ["TOODHead", "relative_alignment"]

Cfg = Mapping[str, Any]
ANCHOR_TYPES = ("anchor_free", "anchor_based")
# Keeps the alignment of an object that nothing predicts from being 0 / 0.
LEAST_ALIGNMENT = 1e-7
OWN_KEYS = ("initial_epoch", "initial_assigner", "alpha", "beta")


@MODELS.register_module()
class TOODHead(BaseModule):
    """Each cell predicts classes and a box out of shared features; both are corrected by looking at each other.

    In the first epochs ``train_cfg.initial_assigner`` says what a cell learns, then ``train_cfg.assigner`` by how well
    class and box are aligned. A run tells the epoch (``SetEpochInfoHook``, or mmengine's message hub); without one it
    is the first.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        num_dcn: How many of the tower's convolutions, from the first, are deformable.
        anchor_type: ``anchor_free`` predicts distances from the cell, ``anchor_based`` boxes encoded by its anchor.
        initial_loss_cls: Classification loss of the first epochs, over labels.
        stacked_convs: Convolutions of the tower.
        conv_cfg: Convolution layers of the tower.
        norm_cfg: Norm layers; None is GN with 32 groups.
        init_cfg: Initialisation instead of TOOD's own.
        feat_channels: Channels of the tower, a multiple of 4.
        anchor_generator: Registered prior generator, one anchor of each cell.
        bbox_coder: Registered box coder, of ``anchor_based``.
        loss_cls: Classification loss of probabilities, over labels and their alignment.
        loss_bbox: Box loss, on boxes in strides.
        train_cfg: ``initial_epoch``, the epochs of ``initial_assigner``; ``assigner`` with its exponents ``alpha``
            and ``beta``; ``sampler``, ``allowed_border``, ``pos_weight``.
        test_cfg: See :class:`DenseTestCfg`.

    Raises:
        ValueError: A number out of range, an unknown ``anchor_type``, several anchors of a cell, or an assigner that
            this head cannot serve.
    """

    train_cfg_keys = (*ANCHOR_TRAIN_CFG_KEYS, *OWN_KEYS)
    test_cfg_keys = TEST_CFG_KEYS
    # Epoch of the run, from 0, as set_epoch is told it; None asks the message hub.
    epoch: int | None = None

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        num_dcn: int = 0,
        anchor_type: str = "anchor_free",
        initial_loss_cls: Cfg | None = None,
        stacked_convs: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        feat_channels: int = 256,
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, number in (("num_classes", num_classes), ("stacked_convs", stacked_convs)):
            if number < 1:
                raise ValueError(f"TOODHead: {name} must be at least 1, got {number}")
        if anchor_type not in ANCHOR_TYPES:
            raise ValueError(f"TOODHead: anchor_type {anchor_type!r} is neither 'anchor_free' nor 'anchor_based'")
        self.num_classes = num_classes
        self.anchor_type = anchor_type
        self.prior_generator = one_anchor_generator(anchor_generator, "TOODHead")
        self.bbox_coder = TASK_UTILS.build(
            bbox_coder or {"type": "DeltaXYWHBBoxCoder", "target_stds": (0.1, 0.1, 0.2, 0.2)}
        )
        self.initial_loss_cls = MODELS.build(initial_loss_cls or {"type": "FocalLoss", "activated": True})
        self.loss_cls = MODELS.build(loss_cls or {"type": "QualityFocalLoss", "activated": True})
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "GIoULoss", "loss_weight": 2.0})
        check_coder(self.bbox_coder, "boxes", "TOODHead")
        check_loss(self.initial_loss_cls, ["labels"], "TOODHead", "initial_loss_cls")
        check_loss(self.loss_cls, ["labels with qualities"], "TOODHead", "loss_cls")
        check_box_loss(self.loss_bbox, True, "TOODHead")
        for name, loss in (("initial_loss_cls", self.initial_loss_cls), ("loss_cls", self.loss_cls)):
            # A built-in without this argument takes logits; one's own is taken at its word.
            if not getattr(loss, "activated", not hasattr(loss, "learns")):
                raise ValueError(f"TOODHead: {name}: this head gives probabilities; set activated=True")
        self._read_train_cfg(train_cfg)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        norm_cfg = norm_cfg or {"type": "GN", "num_groups": 32, "requires_grad": True}
        deformable = {"type": "DCNv2", "deform_groups": 4}
        self.inter_convs = nn.ModuleList(
            ConvModule(
                in_channels if index == 0 else feat_channels,
                feat_channels,
                3,
                padding=1,
                conv_cfg=deformable if index < num_dcn else conv_cfg,
                norm_cfg=norm_cfg,
            )
            for index in range(stacked_convs)
        )
        self.cls_decomp, self.reg_decomp = (
            TaskDecomposition(feat_channels, stacked_convs, stacked_convs * 8, conv_cfg, norm_cfg)
            for _ in ("cls", "reg")
        )
        self.tood_cls = nn.Conv2d(feat_channels, num_classes, 3, padding=1)
        self.tood_reg = nn.Conv2d(feat_channels, 4, 3, padding=1)
        self.cls_prob_module, self.reg_offset_module = (
            nn.Sequential(
                nn.Conv2d(feat_channels * stacked_convs, feat_channels // 4, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(feat_channels // 4, channels, 3, padding=1),
            )
            for channels in (1, 4 * 2)
        )
        self.scales = nn.ModuleList(Scale(1.0) for _ in self.prior_generator.strides)

    def _read_train_cfg(self, train_cfg: Cfg | None) -> None:
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        train_cfg = train_cfg or {}
        shared = {key: value for key, value in train_cfg.items() if key not in OWN_KEYS}
        initial = {**shared, "assigner": train_cfg.get("initial_assigner") or {"type": "ATSSAssigner", "topk": 9}}
        self.initial_epoch = train_cfg.get("initial_epoch", 0)
        self.initial_train_cfg = AnchorTrainCfg.of(initial, "TOODHead")
        self.train_cfg = AnchorTrainCfg.of(shared, "TOODHead")
        # An assigner of one's own need not know these exponents.
        assigner = self.train_cfg.assigner
        known = inspect.signature(getattr(assigner, "assign_batch", getattr(assigner, "assign", bool))).parameters
        self.exponents = {key: train_cfg[key] for key in ("alpha", "beta") if key in train_cfg and key in known}

    def init_weights(self) -> None:
        """TOOD's own initialisation where ``init_cfg`` names none: every class starts with a probability of 0.01."""
        super().init_weights()
        if self.init_cfg:
            return
        rare = bias_init_with_prob(0.01)
        for conv in self.inter_convs:
            normal_init(conv.conv, std=0.01)
        for branch, std in ((self.cls_prob_module, 0.01), (self.reg_offset_module, 0.001)):
            normal_init(branch[0], std=std)
            normal_init(branch[2], std=std)
        normal_init(self.cls_prob_module[2], std=0.01, bias=rare)
        self.cls_decomp.init_weights()
        self.reg_decomp.init_weights()
        normal_init(self.tood_cls, std=0.01, bias=rare)
        normal_init(self.tood_reg, std=0.01)

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch of the run, from 0."""
        self.epoch = epoch

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Probabilities (N, C, H_l, W_l) and boxes (N, 4, H_l, W_l) in strides."""
        cls_scores, bbox_preds = [], []
        levels = self.prior_generator.grid_priors(featmap_sizes(x), device=x[0].device)
        for level, scale, anchors, stride in zip(x, self.scales, levels, self.prior_generator.strides, strict=True):
            layers = []
            for conv in self.inter_convs:
                level = conv(level)
                layers.append(level)
            feat = torch.cat(layers, dim=1)
            mean = F.adaptive_avg_pool2d(feat, (1, 1))
            cls_logits = self.tood_cls(self.cls_decomp(feat, mean)).float()
            cls_scores.append(geometric_mean_of_sigmoids(cls_logits, self.cls_prob_module(feat).float()))
            raw = self.tood_reg(self.reg_decomp(feat, mean))
            boxes = self._boxes(raw, scale, anchors, stride[0])
            bbox_preds.append(sample_boxes(boxes, self.reg_offset_module(feat)))
        return cls_scores, bbox_preds

    def _boxes(self, raw: Tensor, scale: nn.Module, anchors: Tensor, stride: int) -> Tensor:
        """Boxes (N, 4, H, W) in strides of what the layer predicts (N, 4, H, W) for ``anchors`` (H * W, 4)."""
        if self.anchor_type == "anchor_free":
            distances = scale(exp_size(raw)).flatten(2).transpose(1, 2)  # (N, H * W, 4)
            boxes = distance2bbox((box_centers(anchors) / stride).expand(len(raw), -1, 2), distances)
        else:
            deltas = scale(raw).float().flatten(2).transpose(1, 2)
            boxes = self.bbox_coder.decode(anchors.expand(len(raw), -1, 4), deltas) / stride
        return boxes.transpose(1, 2).unflatten(2, raw.shape[2:])

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls`` and ``loss_bbox`` of the levels ``x`` (N, in_channels, H_l, W_l)."""
        cls_scores, bbox_preds = self(x)
        sizes = featmap_sizes(cls_scores)
        levels = self.prior_generator.grid_priors(sizes, device=cls_scores[0].device)
        scores = flatten_levels(cls_scores, self.num_classes)  # (N, A, C)
        predicted = flatten_levels(bbox_preds, 4)  # (N, A, 4), in strides
        anchors = torch.cat(levels)
        strides = torch.cat(self._strides(levels))  # (A, 1)
        initial = self._training_epoch() < self.initial_epoch
        train_cfg = self.initial_train_cfg if initial else self.train_cfg
        inputs = train_cfg.inputs(
            levels, lambda: predicted * strides, scores.detach().logit(eps=1e-6), lambda _: scores
        )
        if not initial:
            inputs |= self.exponents
        targets = train_cfg.targets(levels, self.prior_generator, sizes, batch_data_samples, self.num_classes, inputs)
        positive = targets.bbox_weights
        wanted = torch.where(positive.unsqueeze(-1) > 0, targets.bbox_targets, anchors)
        labels, label_weights = targets.labels.flatten(), targets.label_weights.flatten()
        if initial:
            quality = centerness_of_anchors(anchors.expand_as(wanted), wanted) * positive
            avg_factor = reduce_mean(positive.sum(), least=1)
            of_labels = self.initial_loss_cls(scores.flatten(0, 1), labels, label_weights, avg_factor=avg_factor)
        else:
            quality = relative_alignment(targets, max(len(sample.gt_instances) for sample in batch_data_samples))
            avg_factor = reduce_mean(quality.sum(), least=1)
            both = (labels, quality.flatten())
            of_labels = self.loss_cls(scores.flatten(0, 1), both, label_weights, avg_factor=avg_factor)
        of_boxes = quality_box_loss(self.loss_bbox, predicted, wanted / strides, quality)
        return {"loss_cls": of_labels, "loss_bbox": of_boxes}

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
        levels = self.prior_generator.grid_priors(featmap_sizes(cls_scores), device=cls_scores[0].device)
        candidates = select_candidates(
            [flatten_level(level, self.num_classes) for level in cls_scores],
            [flatten_level(level, 4) for level in bbox_preds],
            self._strides(levels),
            lambda strides, boxes: boxes * strides,
            self.test_cfg,
        )
        return detections(candidates, [sample.metainfo for sample in batch_data_samples], self.test_cfg, rescale)

    def _strides(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Stride (A_l, 1) of the anchors (A_l, 4) of each level."""
        pairs = zip(levels, self.prior_generator.strides, strict=True)
        return [level.new_full((len(level), 1), stride[0]) for level, stride in pairs]

    def _training_epoch(self) -> int:
        """Epoch of the run, from 0; without a run it is the first."""
        if self.epoch is not None:
            return self.epoch
        hub = MessageHub.get_current_instance()
        return hub.get_info("epoch") if "epoch" in hub.runtime_info else 0


def relative_alignment(targets: AnchorTargets, num_gts: int) -> Tensor:
    """Alignment (N, A) of each positive, scaled so that the best of an object has the object's greatest IoU (3.2).

    Args:
        targets: Of an assigner that says how well class and box are aligned.
        num_gts: G, the largest number of objects of an image.

    Raises:
        ValueError: The assigner does not say it.
    """
    assigned, positive = targets.assigned, targets.bbox_weights > 0
    if assigned is None or assigned.metrics is None or assigned.max_overlaps is None:
        raise ValueError(
            "TOODHead: train_cfg.assigner must say how well each positive is aligned and overlaps, as "
            "TaskAlignedAssigner does"
        )
    owner = assigned.gt_inds.clamp(min=0)
    metrics, overlaps = (torch.where(positive, part, 0.0) for part in (assigned.metrics, assigned.max_overlaps))
    nothing = metrics.new_zeros(len(owner), num_gts + 1)
    best, best_iou = (nothing.scatter_reduce(1, owner, part, "amax").gather(1, owner) for part in (metrics, overlaps))
    return metrics / (best + LEAST_ALIGNMENT) * best_iou
