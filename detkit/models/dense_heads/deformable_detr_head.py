"""Head of Deformable DETR, Zhu et al., https://arxiv.org/abs/2010.04159."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModule, bias_init_with_prob, constant_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.losses.query_loss import build_label_loss, check_query_parts, matched_losses
from detkit.models.dense_heads.prediction.queries import inverse_sigmoid, query_detections
from detkit.models.dense_heads.targets.query_targets import hungarian
from detkit.ops.values import check_limit
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["DeformableDETRHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class DeformableDETRHead(BaseModule):
    """Each query predicts one object or none, its box beside a reference; each decoder layer has layers of its own.

    Args:
        num_classes: Classes without background.
        share_pred_layer: Let all decoder layers have the same layers here.
        num_pred_layer: Decoder layers, and one more for the encoder where ``as_two_stage``.
        as_two_stage: References are boxes that the encoder proposes, with losses of their own.
        embed_dims: Channels of a query.
        num_reg_fcs: Linear layers of the boxes' branch before the last one.
        sync_cls_avg_factor: Divide ``loss_cls`` by the mean of all processes.
        loss_cls: Over labels, by default a focal loss; or over labels and the IoU of the box.
        loss_bbox: Over centres and sizes, in shares of the image.
        loss_iou: Over corners, in pixels.
        train_cfg: ``assigner`` of predictions, else the paper's.
        test_cfg: ``max_per_img``, else as many detections of an image as queries.
        init_cfg: Initialisation.

    Raises:
        ValueError: ``num_classes``, ``num_pred_layer`` or ``num_reg_fcs`` below 1, or parts that do not fit.
    """

    train_cfg_keys = ("assigner",)
    test_cfg_keys = ("max_per_img",)

    def __init__(
        self,
        num_classes: int,
        share_pred_layer: bool = False,
        num_pred_layer: int = 6,
        as_two_stage: bool = False,
        embed_dims: int = 256,
        num_reg_fcs: int = 2,
        sync_cls_avg_factor: bool = False,
        loss_cls: Cfg | None = None,
        loss_bbox: Cfg | None = None,
        loss_iou: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if min(num_classes, num_pred_layer, num_reg_fcs) < 1:
            raise ValueError(
                f"{name}: num_classes, num_pred_layer and num_reg_fcs must be at least 1, got "
                f"{num_classes}, {num_pred_layer} and {num_reg_fcs}"
            )
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        check_keys(test_cfg, self.test_cfg_keys, "test_cfg")
        self.num_classes = num_classes
        self.as_two_stage = as_two_stage
        self.sync_cls_avg_factor = sync_cls_avg_factor
        focal = {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 2.0}
        self.loss_cls, self.bg_cls_weight = build_label_loss(loss_cls or focal, num_classes, name)
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "L1Loss", "loss_weight": 5.0})
        self.loss_iou = MODELS.build(loss_iou or {"type": "GIoULoss", "loss_weight": 2.0})
        self.assigner = TASK_UTILS.build((train_cfg or {}).get("assigner") or hungarian("FocalLossCost", 2.0))
        check_query_parts(self)
        self.max_per_img = (test_cfg or {}).get("max_per_img")
        check_limit("test_cfg.max_per_img", self.max_per_img, optional=True)

        self.softmax = not getattr(self.loss_cls, "use_sigmoid", True)
        hidden = [layer for _ in range(num_reg_fcs) for layer in (nn.Linear(embed_dims, embed_dims), nn.ReLU())]
        of_class = nn.Linear(embed_dims, num_classes + self.softmax)
        of_box = nn.Sequential(*hidden, nn.Linear(embed_dims, 4))
        again = (lambda layer: layer) if share_pred_layer else copy.deepcopy
        self.cls_branches = nn.ModuleList(again(of_class) for _ in range(num_pred_layer))
        self.reg_branches = nn.ModuleList(again(of_box) for _ in range(num_pred_layer))

    def init_weights(self) -> None:
        """Boxes begin as their references (sizes without one are small), classes with a probability of 0.01."""
        super().init_weights()
        if not self.softmax:
            for of_class in self.cls_branches:
                nn.init.constant_(of_class.get_parameter("bias"), bias_init_with_prob(0.01))
        lasts = [[*of_box.children()][-1] for of_box in self.reg_branches]
        for last in lasts:
            constant_init(last, 0, bias=0)
        if not self.as_two_stage:  # after all of them, which may be one layer
            nn.init.constant_(lasts[0].get_parameter("bias")[2:], -2.0)

    def forward(self, hidden_states: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (L, N, Q, C), by softmax one more, and boxes (L, N, Q, 4), centre and size in shares of the image.

        Args:
            hidden_states: Queries (L, N, Q, embed_dims) of each decoder layer.
            references: Of each layer, at least L: centres (N, Q, 2) or boxes (N, Q, 4), in shares of the image.

        Raises:
            ValueError: More decoder layers than layers here or references, or references of another kind.
        """
        name = type(self).__name__
        if len(hidden_states) > min(len(references), len(self.cls_branches)):
            raise ValueError(
                f"{name}: {len(hidden_states)} decoder layers, but num_pred_layer={len(self.cls_branches)} and "
                f"{len(references)} references"
            )
        if any(reference.shape[-1] not in (2, 4) for reference in references):
            shapes = ", ".join(str(tuple(reference.shape)) for reference in references)
            raise ValueError(f"{name}: references must be centres (N, Q, 2) or boxes (N, Q, 4), got {shapes}")
        logits, boxes = [], []
        for layer, queries in enumerate(hidden_states):
            reference = inverse_sigmoid(references[layer].float())
            offset = self.reg_branches[layer](queries).float()
            own = offset[..., : reference.shape[-1]] + reference
            boxes.append(torch.cat([own, offset[..., reference.shape[-1] :]], dim=-1).sigmoid())
            logits.append(self.cls_branches[layer](queries))
        return torch.stack(logits), torch.stack(boxes)

    def loss(
        self,
        hidden_states: Tensor,
        references: Sequence[Tensor],
        enc_outputs_class: Tensor | None,
        enc_outputs_coord: Tensor | None,
        batch_data_samples: Sequence[DetDataSample],
    ) -> dict[str, Tensor]:
        """Losses as :meth:`DETRHead.loss`; with proposals ``enc_loss_cls``, ``enc_loss_bbox`` and ``enc_loss_iou`` too.

        Args:
            hidden_states: See :meth:`forward`.
            references: See :meth:`forward`.
            enc_outputs_class: Logits (N, P, C) of the encoder's P proposals, of which the first class is any object.
            enc_outputs_coord: Boxes (N, P, 4) of these, centre and size in shares of the image.
            batch_data_samples: With ``gt_instances`` and the image fact ``img_shape``.

        Raises:
            ValueError: Inputs that do not fit each other.
        """
        logits, boxes = self(hidden_states, references)
        metas = [sample.metainfo for sample in batch_data_samples]
        truth = GroundTruth.from_samples(batch_data_samples)
        losses = matched_losses(self, logits, boxes, truth, metas)
        objects = replace(truth, labels=torch.zeros_like(truth.labels))
        return losses | self.proposal_losses(enc_outputs_class, enc_outputs_coord, objects, metas)

    def proposal_losses(
        self,
        logits: Tensor | None,
        boxes: Tensor | None,
        truth: GroundTruth,
        metas: Sequence[Mapping[str, Any]],
    ) -> dict[str, Tensor]:
        """Losses of the encoder's proposals (N, P, ...); of none there are none.

        Raises:
            ValueError: Logits without boxes, or the other way around.
        """
        if logits is None and boxes is None:
            return {}
        if logits is None or boxes is None:
            given = "enc_outputs_class" if boxes is None else "enc_outputs_coord"
            raise ValueError(f"{type(self).__name__}: enc_outputs_class and enc_outputs_coord go together, got {given}")
        return matched_losses(self, logits[None], boxes[None].float(), truth, metas, "enc_")

    def predict(
        self,
        hidden_states: Tensor,
        references: Sequence[Tensor],
        batch_data_samples: Sequence[DetDataSample],
        rescale: bool = True,
    ) -> list[InstanceData]:
        """Detections of each image by the last layer: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            hidden_states: See :meth:`forward`.
            references: See :meth:`forward`.
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        logits, boxes = self(hidden_states, references)
        metas = [sample.metainfo for sample in batch_data_samples]
        return query_detections(logits[-1], boxes[-1], metas, self.softmax, self.max_per_img, rescale)
