"""Head of CenterNet, Zhou et al., https://arxiv.org/abs/1904.07850."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, bias_init_with_prob, normal_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from detkit.losses.reduction import reduce_mean
from detkit.models.dense_heads.targets.gaussian_target import gaussian_heatmaps, gaussian_radius
from detkit.models.dense_heads.targets.part_checks import check_loss
from detkit.registry import MODELS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.boxes import scale_boxes
from detkit.structures.ground_truth import GroundTruth

__all__ = ["CenterNetHead"]

Cfg = Mapping[str, Any]
# IoU that a box keeps whose centre is off by the radius of its peak (section 4).
MIN_OVERLAP = 0.3


class CenterTargets(NamedTuple):
    """Targets of one map of C classes and H x W cells, in N images.

    Attributes:
        heatmap: (N, C, H, W) in [0, 1], 1 at the centres.
        size: (N, 2, H, W) width and height of the object at its centre, in cells.
        offset: (N, 2, H, W) from the cell to the centre, in cells.
        weight: (N, 1, H, W), 1 at the centres, else 0.
    """

    heatmap: Tensor
    size: Tensor
    offset: Tensor
    weight: Tensor


@MODELS.register_module()
class CenterNetHead(BaseModule):
    """Objects as peaks of a heatmap per class; at the peak their size and what the cell lacks to their centre.

    Args:
        in_channels: Channels of the only level.
        feat_channels: Channels of the hidden layer of each branch.
        num_classes: Classes without background.
        loss_center_heatmap: Loss over heatmaps.
        loss_wh: Loss over sizes.
        loss_offset: Loss over offsets.
        train_cfg: Nothing is read from it.
        test_cfg: ``topk`` peaks, each the highest of ``local_maximum_kernel`` cells around; ``max_per_img`` of these.
        init_cfg: Initialisation.

    Raises:
        ValueError: A number out of range, or losses that do not fit.
    """

    train_cfg_keys = ()
    test_cfg_keys = ("topk", "local_maximum_kernel", "max_per_img")

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_classes: int,
        loss_center_heatmap: Cfg | None = None,
        loss_wh: Cfg | None = None,
        loss_offset: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_classes < 1:
            raise ValueError(f"CenterNetHead: num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        check_keys(train_cfg, self.train_cfg_keys, "train_cfg")
        check_keys(test_cfg, self.test_cfg_keys, "test_cfg")
        test_cfg = test_cfg or {}
        self.topk = test_cfg.get("topk", 100)
        self.local_maximum_kernel = test_cfg.get("local_maximum_kernel", 3)
        self.max_per_img = test_cfg.get("max_per_img", self.topk)
        for name, number in (("topk", self.topk), ("max_per_img", self.max_per_img)):
            if number < 1:
                raise ValueError(f"CenterNetHead: test_cfg.{name} must be at least 1, got {number}")
        if self.local_maximum_kernel < 1 or self.local_maximum_kernel % 2 == 0:
            raise ValueError(
                f"CenterNetHead: test_cfg.local_maximum_kernel must be odd, got {self.local_maximum_kernel}"
            )
        self.loss_center_heatmap = MODELS.build(loss_center_heatmap or {"type": "GaussianFocalLoss"})
        self.loss_wh = MODELS.build(loss_wh or {"type": "L1Loss", "loss_weight": 0.1})
        self.loss_offset = MODELS.build(loss_offset or {"type": "L1Loss"})
        check_loss(self.loss_center_heatmap, ["heatmaps"], "CenterNetHead", "loss_center_heatmap")
        check_loss(self.loss_wh, ["coordinates"], "CenterNetHead", "loss_wh")
        check_loss(self.loss_offset, ["coordinates"], "CenterNetHead", "loss_offset")

        def branch(channels: int) -> nn.Sequential:
            hidden = nn.Conv2d(in_channels, feat_channels, 3, padding=1)
            return nn.Sequential(hidden, nn.ReLU(inplace=True), nn.Conv2d(feat_channels, channels, 1))

        self.heatmap_head = branch(num_classes)
        self.wh_head = branch(2)
        self.offset_head = branch(2)

    def init_weights(self) -> None:
        """Peaks start with a probability of 0.1, sizes and offsets near 0."""
        super().init_weights()
        last: Any = self.heatmap_head[-1]
        nn.init.constant_(last.bias, bias_init_with_prob(0.1))
        for branch in (self.wh_head, self.offset_head):
            for layer in branch:
                if isinstance(layer, nn.Conv2d):
                    normal_init(layer, std=0.001)

    def forward(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Heatmaps (N, C, H, W) in [0, 1], sizes (N, 2, H, W) and offsets (N, 2, H, W) in cells, of each level."""
        heatmaps = [self.heatmap_head(level).float().sigmoid() for level in x]
        return heatmaps, [self.wh_head(level).float() for level in x], [self.offset_head(level).float() for level in x]

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Losses ``loss_center_heatmap``, ``loss_wh``, ``loss_offset`` of the level ``x`` (N, in_channels, H, W).

        Raises:
            ValueError: Several levels.
        """
        heatmap, size, offset = self._only(x)
        targets = self._targets(heatmap, batch_data_samples)
        num_peaks = reduce_mean((targets.heatmap == 1).sum(), least=1)
        weight = targets.weight.expand_as(size)
        return {
            "loss_center_heatmap": self.loss_center_heatmap(heatmap, targets.heatmap, avg_factor=num_peaks),
            "loss_wh": self.loss_wh(size, targets.size, weight, avg_factor=num_peaks * 2),
            "loss_offset": self.loss_offset(offset, targets.offset, weight, avg_factor=num_peaks * 2),
        }

    def _only(self, x: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        if len(x) != 1:
            raise ValueError(
                f"CenterNetHead: one level is expected, got {len(x)}; a neck such as CTResNetNeck makes it"
            )
        (heatmap,), (size,), (offset,) = self(x)
        return heatmap, size, offset

    def _targets(self, heatmap: Tensor, samples: Sequence[DetDataSample]) -> CenterTargets:
        """Targets of a map (N, C, H, W)."""
        truth = GroundTruth.from_samples(samples)
        height, width = heatmap.shape[-2:]
        across, down = _cells_per_pixel(heatmap, samples)
        boxes = truth.boxes
        center = torch.stack(
            [(boxes[..., 0] + boxes[..., 2]) * across / 2, (boxes[..., 1] + boxes[..., 3]) * down / 2], dim=-1
        )
        size = torch.stack([(boxes[..., 2] - boxes[..., 0]) * across, (boxes[..., 3] - boxes[..., 1]) * down], dim=-1)
        cell = center.long()
        column, row = cell.unbind(-1)
        valid = truth.valid & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        radius = gaussian_radius([size[..., 1], size[..., 0]], min_overlap=MIN_OVERLAP).clamp(min=0).long()
        peaks = gaussian_heatmaps(cell, radius, truth.labels, valid, self.num_classes, (height, width))

        # Of several objects in one cell the last is learnt; cell H * W takes what is not valid.
        index = torch.where(valid, row * width + column, height * width)
        number = torch.arange(1, index.shape[1] + 1, device=index.device).expand_as(index)
        last = index.new_zeros(len(index), height * width + 1).scatter_reduce(1, index, number, "amax")[:, :-1]
        learnt = last > 0
        # One more row, so that there is something to gather where there are no objects.
        values = F.pad(torch.cat([size, center - cell], dim=-1), (0, 0, 1, 0)).gather(
            1, last.unsqueeze(-1).expand(-1, -1, 4)
        )
        size_map, offset_map = values.transpose(1, 2).unflatten(2, (height, width)).split(2, dim=1)
        return CenterTargets(peaks, size_map, offset_map, learnt.float().view(-1, 1, height, width))

    def predict(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample], rescale: bool = False
    ) -> list[InstanceData]:
        """Detections of each image: ``bboxes`` (D, 4), ``scores`` (D,), ``labels`` (D,), best first.

        Args:
            x: The level (N, in_channels, H, W).
            batch_data_samples: With image facts ``batch_input_shape``, where padded at the left or top ``border``
                (top, bottom, left, right) and, where resized, ``scale_factor``.
            rescale: Return boxes in the frame of the original image.
        """
        heatmap, size, offset = self._only(x)
        across, down = _cells_per_pixel(heatmap, batch_data_samples)
        num_images, _, height, width = heatmap.shape
        kernel = self.local_maximum_kernel
        peaks = heatmap * (F.max_pool2d(heatmap, kernel, stride=1, padding=(kernel - 1) // 2) == heatmap)
        scores, index = peaks.flatten(1).topk(min(self.topk, peaks[0].numel()), dim=1)
        labels, cell = index // (height * width), index % (height * width)
        values = torch.cat([size, offset], dim=1).flatten(2).transpose(1, 2)
        wide, high, right, low = values.gather(1, cell.unsqueeze(-1).expand(-1, -1, 4)).unbind(-1)
        center_x, center_y = cell % width + right, cell // width + low
        boxes = torch.stack(
            [
                (center_x - wide / 2) / across,
                (center_y - high / 2) / down,
                (center_x + wide / 2) / across,
                (center_y + high / 2) / down,
            ],
            dim=-1,
        )
        results = []
        for image in range(num_images):
            meta = batch_data_samples[image].metainfo
            own = boxes[image, : self.max_per_img]
            if "border" in meta:
                top, _, left, _ = meta["border"]
                own = own - own.new_tensor([left, top, left, top])
            if rescale:
                own = scale_boxes(own, [1 / factor for factor in meta.get("scale_factor", (1.0, 1.0))])
            kept = slice(self.max_per_img)
            results.append(InstanceData(bboxes=own, scores=scores[image, kept], labels=labels[image, kept]))
        return results


def _cells_per_pixel(heatmap: Tensor, samples: Sequence[DetDataSample]) -> tuple[float, float]:
    """Cells of a map (N, C, H, W) per pixel of the batch, across and down."""
    height, width = samples[0].metainfo["batch_input_shape"]
    return heatmap.shape[-1] / width, heatmap.shape[-2] / height
