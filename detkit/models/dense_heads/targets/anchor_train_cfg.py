"""What ``train_cfg`` says to a head of anchors: which of them learn which object."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detkit.models.dense_heads.targets.anchor_targets import (
    AnchorTargets,
    BoxCoder,
    anchor_targets,
    valid_anchors,
)
from detkit.models.dense_heads.targets.part_checks import check_assigner, dense_sampler
from detkit.models.dense_heads.targets.prior_targets import assigner_inputs
from detkit.registry import TASK_UTILS, check_keys
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import GridAnchors

__all__ = ["ANCHOR_TRAIN_CFG_KEYS", "ASSIGNER_OFFERS", "AnchorTrainCfg"]

ANCHOR_TRAIN_CFG_KEYS = ("assigner", "sampler", "allowed_border", "pos_weight", "debug")
# What a head with boxes and class scores can give an assigner besides its priors.
ASSIGNER_OFFERS = ("num_level_priors", "bboxes", "scores")


@dataclass(frozen=True)
class AnchorTrainCfg:
    """What ``train_cfg`` says to a head of anchors.

    Attributes:
        assigner: Built assigner; None where the head is not trained.
        needed: What the assigner asks for besides anchors.
        sampler: Built sampler.
        allowed_border: Pixels by which an anchor may leave the image; a negative number allows any.
        pos_weight: Label weight of a positive; 1 where <= 0.
        head: Whose they are, for messages.
    """

    assigner: Any
    needed: Collection[str]
    sampler: Any
    allowed_border: float
    pos_weight: float
    head: str

    @classmethod
    def of(
        cls, train_cfg: Mapping[str, Any] | None, head: str, offered: Collection[str] = ASSIGNER_OFFERS
    ) -> AnchorTrainCfg:
        """Read a ``train_cfg`` dict of ``head``, which can give an assigner what is ``offered``.

        Raises:
            KeyError: An unknown key.
            ValueError: An assigner that such a head cannot serve.
        """
        check_keys(train_cfg, ANCHOR_TRAIN_CFG_KEYS, "train_cfg")
        train_cfg = train_cfg or {}
        assigner = TASK_UTILS.build(train_cfg["assigner"]) if "assigner" in train_cfg else None
        return cls(
            assigner,
            check_assigner(assigner, offered, head),
            dense_sampler(train_cfg.get("sampler"), head),
            train_cfg.get("allowed_border", -1),
            train_cfg.get("pos_weight", -1),
            head,
        )

    def inputs(
        self,
        levels: Sequence[Tensor],
        decode: Callable[[], Tensor],
        logits: Tensor,
        activate: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> dict[str, Any]:
        """What the assigner asks for; what it does not is not computed.

        Args:
            levels: Anchors (A_l, 4) of each level.
            decode: Makes the predicted boxes (N, A, 4).
            logits: (N, A, C).
            activate: Makes probabilities of logits.
        """
        return assigner_inputs(
            self.assigner, self.needed, levels, decode, lambda: logits, lambda: activate(logits.detach())
        )

    def targets(
        self,
        levels: Sequence[Tensor],
        generator: GridAnchors,
        sizes: Sequence[tuple[int, int]],
        batch_data_samples: Sequence[DetDataSample],
        num_classes: int,
        inputs: Mapping[str, Any],
        coder: BoxCoder | None = None,
        one_class: bool = False,
    ) -> AnchorTargets:
        """Targets of all anchors of all images.

        Args:
            levels: Anchors (A_l, 4) of each level.
            generator: Their generator.
            sizes: Height and width of each feature map.
            batch_data_samples: Of N images.
            num_classes: Label of the background.
            inputs: What the assigner asks for, see :meth:`inputs`.
            coder: Encodes the boxes; None leaves them as they are.
            one_class: Whether every object is of the one class that the head knows, whatever its label.

        Raises:
            ValueError: There is no assigner, or the sampler adds objects to the anchors.
        """
        if self.assigner is None:
            raise ValueError(f"{self.head}: training needs train_cfg with an assigner")
        anchors = torch.cat(list(levels))
        metas = [sample.metainfo for sample in batch_data_samples]
        truth = GroundTruth.from_samples(batch_data_samples)
        if one_class:
            truth = replace(truth, labels=torch.zeros_like(truth.labels))
        return anchor_targets(
            anchors,
            truth,
            valid_anchors(anchors, generator, sizes, metas, self.allowed_border),
            self.assigner,
            self.sampler,
            coder,
            num_classes,
            self.pos_weight,
            inputs,
        )
