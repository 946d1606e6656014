"""What ``train_cfg`` says to a head of guided anchors (https://arxiv.org/abs/1901.03278)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from detkit.models.dense_heads.targets.anchor_train_cfg import ANCHOR_TRAIN_CFG_KEYS, AnchorTrainCfg
from detkit.models.dense_heads.targets.part_checks import check_assigner, dense_sampler
from detkit.registry import TASK_UTILS, check_keys

__all__ = ["GUIDED_TRAIN_CFG_KEYS", "GuidedTrainCfg"]

GUIDED_KEYS = ("ga_assigner", "ga_sampler", "center_ratio", "ignore_ratio")
GUIDED_TRAIN_CFG_KEYS = (*ANCHOR_TRAIN_CFG_KEYS, *GUIDED_KEYS)


@dataclass(frozen=True)
class GuidedTrainCfg:
    """What ``train_cfg`` says to a head of guided anchors.

    Attributes:
        anchors: Which guided anchors learn which object.
        shape_assigner: Built assigner of the squares whose shapes are learnt; None where the head is not trained.
        shape_inputs: What it asks for besides squares.
        shape_sampler: Built sampler of these squares.
        center_ratio: Size of the region in which anchors are wanted, of the object's.
        ignore_ratio: Size of the region around it that counts nothing, of the object's.
    """

    anchors: AnchorTrainCfg
    shape_assigner: Any
    shape_inputs: Collection[str]
    shape_sampler: Any
    center_ratio: float
    ignore_ratio: float

    @classmethod
    def of(cls, train_cfg: Mapping[str, Any] | None, head: str) -> GuidedTrainCfg:
        """Read a ``train_cfg`` dict of ``head``.

        Raises:
            KeyError: An unknown key.
            ValueError: An assigner that such a head cannot serve, one of two assigners is missing, or ratios that are
                not in order.
        """
        check_keys(train_cfg, GUIDED_TRAIN_CFG_KEYS, "train_cfg")
        train_cfg = dict(train_cfg or {})
        if ("assigner" in train_cfg) != ("ga_assigner" in train_cfg):
            raise ValueError(f"{head}: train_cfg needs both assigner and ga_assigner, it has one of them")
        center_ratio, ignore_ratio = train_cfg.get("center_ratio", 0.2), train_cfg.get("ignore_ratio", 0.5)
        if not 0 < center_ratio <= ignore_ratio <= 1:
            raise ValueError(
                f"{head}: train_cfg needs 0 < center_ratio <= ignore_ratio <= 1, got {center_ratio!r} and "
                f"{ignore_ratio!r}"
            )
        anchors = {name: value for name, value in train_cfg.items() if name not in GUIDED_KEYS}
        assigner = TASK_UTILS.build(train_cfg["ga_assigner"]) if "ga_assigner" in train_cfg else None
        return cls(
            AnchorTrainCfg.of(anchors, head),
            assigner,
            check_assigner(assigner, ["approxs", "num_level_priors"], head, argument="train_cfg.ga_assigner"),
            dense_sampler(train_cfg.get("ga_sampler"), head, "train_cfg.ga_sampler"),
            center_ratio,
            ignore_ratio,
        )
