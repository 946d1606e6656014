"""Head of YOLOv3, Redmon and Farhadi, https://arxiv.org/abs/1804.02767."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.losses.summed_loss import build_summed_loss
from detkit.models.dense_heads.prediction.flatten import featmap_sizes, flatten_level
from detkit.models.dense_heads.prediction.log_size import GREATEST_LOG
from detkit.models.dense_heads.prediction.postprocess import TEST_CFG_KEYS, DenseTestCfg, detections, select_candidates
from detkit.models.dense_heads.targets.anchor_targets import AnchorTargets, anchor_targets
from detkit.models.dense_heads.targets.part_checks import (
    check_assigner,
    check_coder,
    check_loss,
    check_score_loss,
    dense_sampler,
)
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["YOLOV3Head", "responsible_cells"]

Cfg = Mapping[str, Any]
# Of each anchor the map has x, y, width, height, confidence, then classes.
NUM_BOX = 4
# Side in pixels of the image that the first confidences are meant for, and objects in each of its maps.
USUAL_SIDE = 608
USUAL_OBJECTS = 8


def responsible_cells(
    ground_truth: GroundTruth, sizes: Sequence[tuple[int, int]], strides: Sequence[tuple[float, float]]
) -> list[Tensor]:
    """Which cells hold the centre of an object: per level (N, H_l * W_l) bool, row by row.

    Args:
        ground_truth: Objects of N images.
        sizes: Height and width of each level.
        strides: Pixels per cell of each level, of x and y.
    """
    boxes = ground_truth.boxes
    x, y = ((boxes[..., :2] + boxes[..., 2:]) * 0.5).unbind(-1)  # (N, G)
    flags = []
    for (height, width), (stride_x, stride_y) in zip(sizes, strides, strict=True):
        column, row = (x / stride_x).floor().long(), (y / stride_y).floor().long()
        inside = ground_truth.valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        cell = torch.where(inside, row * width + column, 0)
        level = torch.zeros(len(boxes), height * width, device=boxes.device, dtype=torch.int32)
        flags.append(level.scatter_reduce(1, cell, inside.int(), "amax") > 0)
    return flags


@MODELS.register_module()
class YOLOV3Head(BaseModule):
    """Two convolutions per level; each anchor predicts a place in its cell, a size, a confidence and classes.

    Args:
        num_classes: Classes without background.
        in_channels: Channels of each level.
        out_channels: Channels between the two convolutions of each level.
        anchor_generator: Registered prior generator.
        bbox_coder: Registered box coder that knows strides.
        featmap_strides: Pixels per cell of each level, as the anchors have.
        one_hot_smoother: Share of a class target that is spread over all classes.
        conv_cfg: Layers of the first convolutions.
        norm_cfg: Their norm layers.
        act_cfg: Their activations.
        loss_cls: Classification loss; this and the next three must have the reduction ``sum``.
        loss_conf: Confidence loss.
        loss_xy: Loss of the place in the cell.
        loss_wh: Loss of the size.
        train_cfg: ``assigner`` and ``sampler``; None at test time.
        test_cfg: See :class:`DenseTestCfg`; ``nms_pre`` counts over all levels, and anchors whose confidence is below
            ``conf_thr`` are left out.

    Raises:
        ValueError: ``num_classes`` below 1, levels that differ in number or stride, a loss that does not sum, or an
            assigner that this head cannot serve.
    """

    train_cfg_keys = ("assigner", "sampler")
    test_cfg_keys = (*TEST_CFG_KEYS, "conf_thr")
    # What the head can give an assigner besides its anchors.
    assigner_offers = ("num_level_priors", "responsible_flags")

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int],
        out_channels: Sequence[int] = (1024, 512, 256),
        anchor_generator: Cfg | None = None,
        bbox_coder: Cfg | None = None,
        featmap_strides: Sequence[int] = (32, 16, 8),
        one_hot_smoother: float = 0.0,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg | None = None,
        act_cfg: Cfg | None = None,
        loss_cls: Cfg | None = None,
        loss_conf: Cfg | None = None,
        loss_xy: Cfg | None = None,
        loss_wh: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
    ) -> None:
        super().__init__({"type": "Normal", "layer": "Conv2d", "std": 0.01})
        if num_classes < 1:
            raise ValueError(f"YOLOV3Head: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.one_hot_smoother = one_hot_smoother
        self.prior_generator = TASK_UTILS.build(anchor_generator or _default_anchors())
        self.bbox_coder = TASK_UTILS.build(bbox_coder or {"type": "YOLOBBoxCoder"})
        self.strides = [(stride, stride) for stride in featmap_strides]
        if self.strides != [tuple(stride) for stride in self.prior_generator.strides]:
            raise ValueError(
                f"YOLOV3Head: featmap_strides {list(featmap_strides)} are not those of the anchors, "
                f"{self.prior_generator.strides}"
            )
        if not len(in_channels) == len(out_channels) == len(featmap_strides):
            raise ValueError(
                f"YOLOV3Head: {len(featmap_strides)} featmap_strides, {len(in_channels)} in_channels and "
                f"{len(out_channels)} out_channels; each level needs one of each"
            )
        entropy = {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum"}
        self.loss_cls = build_summed_loss(loss_cls or entropy, "YOLOV3Head: loss_cls")
        self.loss_conf = build_summed_loss(loss_conf or entropy, "YOLOV3Head: loss_conf")
        self.loss_xy = build_summed_loss(loss_xy or entropy, "YOLOV3Head: loss_xy")
        self.loss_wh = build_summed_loss(loss_wh or {"type": "MSELoss", "reduction": "sum"}, "YOLOV3Head: loss_wh")
        check_coder(self.bbox_coder, "boxes with strides", "YOLOV3Head")
        for name in ("loss_cls", "loss_conf", "loss_xy"):
            check_score_loss(getattr(self, name), "YOLOV3Head", name)
        check_loss(self.loss_wh, ["coordinates"], "YOLOV3Head", "loss_wh")

        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        check_keys(test_cfg, self.test_cfg_keys, "test_cfg")
        train_cfg, test_cfg = train_cfg or {}, dict(test_cfg or {})
        self.assigner = TASK_UTILS.build(train_cfg["assigner"]) if "assigner" in train_cfg else None
        self.assigner_inputs = check_assigner(self.assigner, self.assigner_offers, "YOLOV3Head")
        self.sampler = dense_sampler(train_cfg.get("sampler"), "YOLOV3Head")
        self.conf_thr = test_cfg.pop("conf_thr", -1)
        self.test_cfg = DenseTestCfg.of(test_cfg)

        self.num_anchors = self.prior_generator.num_base_priors[0]
        layers = {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg or {"type": "BN", "requires_grad": True}}
        activation = act_cfg or {"type": "LeakyReLU", "negative_slope": 0.1}
        self.convs_bridge = nn.ModuleList(
            ConvModule(before, after, 3, padding=1, act_cfg=dict(activation), **layers)
            for before, after in zip(in_channels, out_channels, strict=True)
        )
        num_outputs = self.num_anchors * (NUM_BOX + 1 + num_classes)
        self.convs_pred = nn.ModuleList(nn.Conv2d(channels, num_outputs, 1) for channels in out_channels)

    def init_weights(self) -> None:
        """Initialise by ``init_cfg``; a map starts with some objects, of whatever class."""
        super().init_weights()
        for conv, (stride, _) in zip(self.convs_pred, self.strides, strict=True):
            by_anchor = conv.get_parameter("bias").detach().view(self.num_anchors, -1)
            by_anchor[:, NUM_BOX] = bias_init_with_prob(USUAL_OBJECTS / (USUAL_SIDE / stride) ** 2)
            by_anchor[:, NUM_BOX + 1 :] = bias_init_with_prob(0.01)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor]]:
        """Maps (N, A * (5 + C), H_l, W_l) of levels (N, C_l, H_l, W_l)."""
        layers = zip(self.convs_bridge, self.convs_pred, x, strict=True)
        return ([predict(bridge(level)) for bridge, predict, level in layers],)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_cls``, ``loss_conf``, ``loss_xy``, ``loss_wh`` of the levels ``x`` (N, C_l, H_l, W_l)."""
        if self.assigner is None:
            raise ValueError("YOLOV3Head: training needs train_cfg with an assigner")
        outputs, priors, levels, sizes = self._flat_outputs(x)
        ground_truth = GroundTruth.from_samples(batch_data_samples)
        anchors, strides = priors.split([NUM_BOX, 1], dim=1)
        offered: dict[str, Callable[[], Any]] = {
            "num_level_priors": lambda: levels,
            "responsible_flags": lambda: self._responsible(ground_truth, sizes),
        }
        targets = anchor_targets(
            anchors,
            ground_truth,
            None,
            self.assigner,
            self.sampler,
            None,
            self.num_classes,
            assigner_inputs={name: offered[name]() for name in self.assigner_inputs},
        )
        return self._losses(outputs, anchors, strides, targets)

    def _responsible(self, ground_truth: GroundTruth, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Whether the cell of each anchor holds the centre of an object, (N, A) bool."""
        cells = torch.cat(responsible_cells(ground_truth, sizes, self.strides), dim=1)
        return cells.unsqueeze(-1).expand(-1, -1, self.num_anchors).flatten(1)

    def _losses(self, outputs: Tensor, anchors: Tensor, strides: Tensor, targets: AnchorTargets) -> dict[str, Tensor]:
        """The four losses of outputs (N, A, 5 + C) of anchors (A, 4) with strides (A, 1), over the whole batch."""
        positive = targets.bbox_weights.flatten().unsqueeze(-1)
        boxes = torch.where(targets.bbox_weights.unsqueeze(-1) > 0, targets.bbox_targets, anchors)
        wanted = self.bbox_coder.encode(anchors.expand_as(boxes), boxes, strides).flatten(0, 1)
        classes = torch.arange(self.num_classes, device=outputs.device)
        one_hot = (targets.labels.flatten().unsqueeze(-1) == classes).float()
        spread = self.one_hot_smoother / self.num_classes
        of_class = one_hot * (1 - self.one_hot_smoother) + spread
        xy, wh, confidence, logits = outputs.flatten(0, 1).split([2, 2, 1, self.num_classes], dim=-1)
        return {
            "loss_cls": self.loss_cls(logits, of_class, weight=positive),
            "loss_conf": self.loss_conf(confidence, positive, weight=targets.label_weights.reshape(-1, 1)),
            "loss_xy": self.loss_xy(xy, wanted[:, :2], weight=positive.expand(-1, 2)),
            "loss_wh": self.loss_wh(wh, wanted[:, 2:], weight=positive.expand(-1, 2)),
        }

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: Levels (N, C_l, H_l, W_l).
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        outputs, priors, _, _ = self._flat_outputs(x)
        xy, wh, confidence, logits = outputs.split([2, 2, 1, self.num_classes], dim=-1)
        confidence = confidence.sigmoid()
        scores = logits.sigmoid()
        if self.conf_thr > 0:
            # A score of 0 passes no threshold.
            scores = torch.where(confidence >= self.conf_thr, scores, 0.0)
        candidates = select_candidates(
            [scores],
            [torch.cat([xy.sigmoid(), wh.clamp(max=GREATEST_LOG)], dim=-1)],
            [priors],
            lambda some, encoded: self.bbox_coder.decode(some[..., :NUM_BOX], encoded, some[..., NUM_BOX:]),
            self.test_cfg,
            [confidence.squeeze(-1)],
        )
        return detections(candidates, [sample.metainfo for sample in batch_data_samples], self.test_cfg, rescale)

    def _flat_outputs(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[int], list[tuple[int, int]]]:
        """Outputs (N, A, 5 + C), anchors with their stride (A, 5), anchors of each level, and height and width."""
        (maps,) = self(x)
        sizes = featmap_sizes(maps)
        outputs = [flatten_level(level, NUM_BOX + 1 + self.num_classes) for level in maps]
        levels = self.prior_generator.grid_priors(sizes, device=maps[0].device)
        priors = [
            torch.cat([level, level.new_full((len(level), 1), stride)], dim=1)
            for level, (stride, _) in zip(levels, self.strides, strict=True)
        ]
        return torch.cat(outputs, dim=1), torch.cat(priors), [len(level) for level in levels], sizes


def _default_anchors() -> dict[str, Any]:
    return {
        "type": "YOLOAnchorGenerator",
        "base_sizes": [
            [(116, 90), (156, 198), (373, 326)],
            [(30, 61), (62, 45), (59, 119)],
            [(10, 13), (16, 30), (33, 23)],
        ],
        "strides": [32, 16, 8],
    }
