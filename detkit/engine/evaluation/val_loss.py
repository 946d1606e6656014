"""Losses on data that the model does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from detkit.engine.distributed import all_gather
from detkit.engine.evaluation.annotation_frame import loads_in_original_frame, to_network_frame
from detkit.engine.parallel.inner_model import inner_model

__all__ = ["ValidationLoss", "without_losses"]


class ValidationLoss:
    """Means of a model's losses over a dataset, each batch weighted by its images.

    Boxes, masks and maps that the pipeline loads after resizing are in pixels of the original image, as metrics
    want them; the losses see them in pixels of the network's input. Buffers that a loss keeps (running means,
    counts) are put back, and no gradient is kept. The total is read from the device once, at the end.

    Args:
        model: In evaluation mode, wrapped or not.
        dataloader: The data, for its number of batches and its pipeline.
        source: Config path of ``dataloader``, for messages.

    Raises:
        ValueError: The pipeline loads no annotations, or moves them in ways that are not known here; a process
            has no batch.
    """

    def __init__(self, model: nn.Module, dataloader: Any, source: str) -> None:
        inner = inner_model(model)
        self._model = inner
        self._source = source
        self._rescale = loads_in_original_frame(dataloader.dataset, f"{source}.dataset.pipeline")
        self._sums: dict[str, Tensor] = {}
        self._images = 0
        self._last: Any = None
        self._buffers = _Buffers(self._model)
        counts = all_gather(len(dataloader))
        if min(counts) == 0:
            raise ValueError(f"{source}: a loss needs a batch in each of {len(counts)} processes, they have {counts}")
        self._longest = max(counts)
        self._batches = 0

    def add(self, data_batch: Any) -> None:
        """Compute the losses of a batch of the dataset."""
        for name, value in self._losses(data_batch).items():
            self._sums[name] = self._sums.get(name, 0) + value.double() * len(data_batch["data_samples"])
        self._images += len(data_batch["data_samples"])
        self._batches += 1
        self._last = data_batch

    def means(self) -> dict[str, float]:
        """The means over the images of all processes."""
        with torch.no_grad():
            # Uncounted, as often as others have more batches: a normaliser may wait for all processes.
            for _ in range(self._longest - self._batches):
                self._losses(self._last)
        names = list(self._sums)
        values = torch.stack(list(self._sums.values())).tolist() if names else []
        gathered = all_gather((dict(zip(names, values, strict=True)), self._images))
        images = sum(count for _, count in gathered)
        totals: dict[str, float] = {}
        for sums, _ in gathered:
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        return {name: value / images for name, value in totals.items()}

    def _losses(self, data_batch: Any) -> dict[str, Tensor]:
        if not isinstance(data_batch, Mapping) or "data_samples" not in data_batch:
            raise ValueError(f"{self._source}: a loss needs batches with data_samples, got {type(data_batch).__name__}")
        for sample in data_batch["data_samples"]:
            if "gt_instances" not in sample or not sample.gt_instances.keys():
                raise ValueError(
                    f"{self._source}.dataset.pipeline: a loss needs annotations, but {sample.get('img_path')} has "
                    "none; add dict(type='LoadAnnotations', with_bbox=True), or leave loss=True out"
                )
        # Copies: predicting on the same batch follows, and the metric reads its ground truth.
        samples = [to_network_frame(sample) if self._rescale else sample.new() for sample in data_batch["data_samples"]]
        preprocessor = self._model.data_preprocessor
        data = preprocessor({**data_batch, "data_samples": samples}, False)
        if hasattr(preprocessor, "pad_annotations"):
            preprocessor.pad_annotations(data["data_samples"], *data["inputs"].shape[-2:])
        try:
            _, losses = self._model.parse_losses(self._model(**data, mode="loss"))
        finally:
            self._buffers.restore()
        return {name: torch.as_tensor(value).detach() for name, value in losses.items()}


class _Buffers:
    """The buffers of a model as they are now; losses that count or average as they go write into theirs."""

    def __init__(self, model: nn.Module) -> None:
        places = [(module, name) for module in model.modules() for name in module._buffers]
        self._kept = [(module, name, module._buffers[name]) for module, name in places]
        self._values = [buffer.clone() for _, _, buffer in self._kept if buffer is not None]

    @torch.no_grad()
    def restore(self) -> None:
        for module, name, buffer in self._kept:
            module._buffers[name] = buffer
        if self._values:
            torch._foreach_copy_([buffer for _, _, buffer in self._kept if buffer is not None], self._values)


def without_losses(outputs: Any, losses: dict[str, list[float]]) -> Any:
    """Take out the losses that mmengine lets a model hand over as a last element of its predictions."""
    last = outputs[-1] if isinstance(outputs, Sequence) and len(outputs) else None
    if not isinstance(last, BaseDataElement) or list(last.keys()) != ["loss"] or not isinstance(last.loss, Mapping):
        return outputs
    for name, value in last.loss.items():
        entries = value if isinstance(value, Sequence) else [value]
        losses.setdefault(name, []).extend(float(entry) for entry in entries)
    return outputs[:-1]
