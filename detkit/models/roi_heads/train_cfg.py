"""What ``train_cfg.rcnn`` says to a RoI head, or to one stage of a cascade."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from detkit.models.dense_heads.targets.part_checks import check_assigner, check_sampler_type
from detkit.models.roi_heads.sampling import SampledRoIs, sample_rois
from detkit.registry import TASK_UTILS, check_keys
from detkit.structures.ground_truth import GroundTruth
from detkit.structures.proposals import Proposals
from detkit.task_modules.samplers.combined_sampler import build_sampler
from detkit.task_modules.samplers.roi_outputs import RUNS_ROI_HEAD

__all__ = ["ROI_TRAIN_CFG_KEYS", "RoITrainCfg"]

ROI_TRAIN_CFG_KEYS = ("assigner", "sampler", "mask_size", "pos_weight", "debug")


@dataclass(frozen=True)
class RoITrainCfg:
    """What ``train_cfg.rcnn`` says.

    Attributes:
        assigner: Built assigner of proposals; None where the head is not trained.
        sampler: Built sampler.
        pos_weight: Label weight of a positive; 1 where <= 0.
        mask_size: Height and width of mask targets, or a number for both.
        head: Whose they are, for messages.
        extra: What else the head reads, by name.
    """

    assigner: Any
    sampler: Any
    pos_weight: float
    mask_size: int | Sequence[int]
    head: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        train_cfg: Mapping[str, Any] | None,
        context: Any,
        extra_keys: Collection[str] = (),
        name: str = "train_cfg",
    ) -> RoITrainCfg:
        """Read the ``train_cfg`` dict of the RoI head ``context``.

        Args:
            train_cfg: The dict; None leaves the head untrained.
            context: The head, for samplers that run it.
            extra_keys: What it reads besides.
            name: What the dict is called in the config of the head.

        Raises:
            KeyError: An unknown key.
            ValueError: There is an assigner without a sampler, or parts that do not fit.
        """
        head = type(context).__name__
        check_keys(train_cfg, (*ROI_TRAIN_CFG_KEYS, *extra_keys), name)
        train_cfg = train_cfg or {}
        assigner = sampler = None
        if "assigner" in train_cfg:
            assigner = TASK_UTILS.build(train_cfg["assigner"])
            check_assigner(assigner, (), head)
            if train_cfg.get("sampler") is None:
                raise ValueError(f"{head}: {name}.sampler is missing; RandomSampler with num=512 is usual")
            check_sampler_type(train_cfg["sampler"], head, f"{name}.sampler", "proposals", {RUNS_ROI_HEAD})
            sampler = build_sampler(train_cfg["sampler"], context=context)
        extra = {key: train_cfg[key] for key in extra_keys if key in train_cfg}
        return cls(assigner, sampler, train_cfg.get("pos_weight", -1), train_cfg.get("mask_size", 28), head, extra)

    def sample(
        self, proposals: Proposals, ground_truth: GroundTruth, num_classes: int, feats: Sequence[Tensor] | None = None
    ) -> SampledRoIs:
        """Assign and sample proposals, see :func:`sample_rois`.

        Raises:
            ValueError: There is no assigner.
        """
        if self.assigner is None:
            raise ValueError(f"{self.head}: training needs train_cfg with an assigner and a sampler")
        return sample_rois(proposals.detached(), ground_truth, self.assigner, self.sampler, num_classes, feats)
