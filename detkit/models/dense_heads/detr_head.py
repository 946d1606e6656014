"""Head of DETR, Carion et al., https://arxiv.org/abs/2005.12872."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.models.dense_heads.losses.query_loss import build_label_loss, check_query_parts, matched_losses
from detkit.models.dense_heads.prediction.queries import query_detections
from detkit.models.dense_heads.targets.query_targets import hungarian
from detkit.ops.values import check_limit
from detkit.registry import MODELS, TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["DETRHead"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class DETRHead(BaseModule):
    """Each query predicts one object or none; nothing is suppressed.

    Args:
        num_classes: Classes without background.
        embed_dims: Channels of a query.
        num_reg_fcs: Linear layers of the boxes' branch before the last one.
        sync_cls_avg_factor: Divide ``loss_cls`` by the mean of all processes.
        loss_cls: Over labels, by default a softmax with a background that counts a tenth; with one number for
            ``class_weight``, that of the background is ``bg_cls_weight``. Or over labels and the IoU of the box.
        loss_bbox: Over centres and sizes, in shares of the image.
        loss_iou: Over corners, in pixels.
        train_cfg: ``assigner`` of predictions, else the paper's.
        test_cfg: ``max_per_img``, else as many detections of an image as queries.
        init_cfg: Initialisation.

    Raises:
        ValueError: ``num_classes`` or ``num_reg_fcs`` below 1, or parts that do not fit.
    """

    train_cfg_keys = ("assigner",)
    test_cfg_keys = ("max_per_img",)

    def __init__(
        self,
        num_classes: int,
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
        if min(num_classes, num_reg_fcs) < 1:
            raise ValueError(
                f"DETRHead: num_classes and num_reg_fcs must be at least 1, got {num_classes} and {num_reg_fcs}"
            )
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        check_keys(test_cfg, self.test_cfg_keys, "test_cfg")
        self.num_classes = num_classes
        self.sync_cls_avg_factor = sync_cls_avg_factor
        softmax = {"type": "CrossEntropyLoss", "class_weight": 1.0, "bg_cls_weight": 0.1}
        self.loss_cls, self.bg_cls_weight = build_label_loss(loss_cls or softmax, num_classes, "DETRHead")
        self.loss_bbox = MODELS.build(loss_bbox or {"type": "L1Loss", "loss_weight": 5.0})
        self.loss_iou = MODELS.build(loss_iou or {"type": "GIoULoss", "loss_weight": 2.0})
        self.assigner = TASK_UTILS.build((train_cfg or {}).get("assigner") or hungarian("ClassificationCost", 1.0))
        check_query_parts(self)
        self.max_per_img = (test_cfg or {}).get("max_per_img")
        check_limit("test_cfg.max_per_img", self.max_per_img, optional=True)

        self.softmax = not getattr(self.loss_cls, "use_sigmoid", True)
        self.fc_cls = nn.Linear(embed_dims, num_classes + self.softmax)
        hidden = (nn.Sequential(nn.Linear(embed_dims, embed_dims), nn.ReLU()) for _ in range(num_reg_fcs - 1))
        layers = nn.Sequential(*hidden, nn.Linear(embed_dims, embed_dims))
        self.reg_ffn = nn.Sequential(OrderedDict(layers=layers))
        self.fc_reg = nn.Linear(embed_dims, 4)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (L, N, Q, C), by softmax one more, and boxes (L, N, Q, 4), centre and size in shares of the image.

        Args:
            hidden_states: Queries (L, N, Q, embed_dims) of each decoder layer.
        """
        boxes = self.fc_reg(self.reg_ffn(hidden_states).relu())
        return self.fc_cls(hidden_states), boxes.float().sigmoid()

    def loss(self, hidden_states: Tensor, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last layer, ``d0.loss_cls`` ... of the others.

        Args:
            hidden_states: See :meth:`forward`.
            batch_data_samples: With ``gt_instances`` and the image fact ``img_shape``.
        """
        logits, boxes = self(hidden_states)
        metas = [sample.metainfo for sample in batch_data_samples]
        return matched_losses(self, logits, boxes, GroundTruth.from_samples(batch_data_samples), metas)

    def predict(
        self, hidden_states: Tensor, batch_data_samples: Sequence[DetDataSample], rescale: bool = True
    ) -> list[InstanceData]:
        """Detections of each image by the last layer: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            hidden_states: See :meth:`forward`.
            batch_data_samples: With image facts ``img_shape`` and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        logits, boxes = self(hidden_states[-1:])
        metas = [sample.metainfo for sample in batch_data_samples]
        return query_detections(logits[-1], boxes[-1], metas, self.softmax, self.max_per_img, rescale)
