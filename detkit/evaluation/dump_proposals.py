"""DumpProposals: the predictions of an RPN as a file that Fast R-CNN trains on."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement

from detkit.evaluation.coco_results import to_numpy
from detkit.registry import METRICS

__all__ = ["DumpProposals"]


@METRICS.register_module()
class DumpProposals(BaseMetric):
    """Writes the predicted boxes of every image, best first, as ``proposal_file`` of a dataset takes them.

    The file is a pickle of a dict: name of the image (its folder's and its own) to ``bboxes`` (P, 4), xyxy in pixels
    of the original image, and ``scores`` (P,), arrays of numpy. MMDetection reads it too.

    Args:
        output_dir: Folder of the file.
        proposals_file: Its name, which ends in ``.pkl`` or ``.pickle``.
        num_max_proposals: Only the best so many of each image.
        backend_args: File backend of mmengine.
        collect_device: ``cpu`` or ``gpu``: how results travel between processes.
        prefix: Accepted as by other metrics; there are no figures.

    Raises:
        ValueError: Another ending, or two images of one name.
    """

    default_prefix = "dump_proposals"

    def __init__(
        self,
        output_dir: str = "",
        proposals_file: str = "proposals.pkl",
        num_max_proposals: int | None = None,
        backend_args: Mapping[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not proposals_file.endswith((".pkl", ".pickle")):
            raise ValueError(
                f"proposals_file: a name that ends in .pkl or .pickle was expected, got {proposals_file!r}"
            )
        self.path = os.path.join(output_dir, proposals_file)
        self.num_max_proposals = num_max_proposals
        self.backend_args = None if backend_args is None else dict(backend_args)

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any] | BaseDataElement]) -> None:
        """Keep the boxes of some images.

        Args:
            data_batch: Not used.
            data_samples: Per image ``img_path`` and ``pred_instances`` with ``bboxes`` (P, 4) and ``scores`` (P,).
        """
        for sample in data_samples:
            sample = sample.to_dict() if isinstance(sample, BaseDataElement) else sample
            if sample.get("img_path") is None:
                raise ValueError("DumpProposals names images by img_path: put it into meta_keys of PackDetInputs")
            boxes, scores = (to_numpy(sample["pred_instances"][key]) for key in ("bboxes", "scores"))
            best = np.argsort(-scores, kind="stable")[: self.num_max_proposals]
            folder, name = os.path.split(sample["img_path"])
            key = os.path.join(os.path.basename(folder), name)
            self.results.append((key, {"bboxes": boxes[best], "scores": scores[best]}))

    def compute_metrics(self, results: list[tuple[str, dict[str, Any]]]) -> dict[str, float]:
        """Write the file."""
        content: dict[str, dict[str, Any]] = {}
        for key, proposals in results:
            if key in content:
                raise ValueError(f"{self.path}: two images are named {key!r}; proposals are told apart by that name")
            content[key] = proposals
        fileio.put(pickle.dumps(content, protocol=4), self.path, backend_args=self.backend_args)
        print_log(f"{self.path}: proposals of {len(content)} images written", logger="current")
        return {}
