"""A region proposal network alone, Ren et al., https://arxiv.org/abs/1506.01497."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS, check_keys

__all__ = ["RPN"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class RPN(SingleStageDetector):
    """Backbone, neck and a head that finds objects of any class.

    Args:
        backbone: Registered backbone.
        neck: Registered neck; None has none.
        rpn_head: Registered head, usually RPNHead.
        train_cfg: ``rpn``, what the head needs in training.
        test_cfg: ``rpn``, what the head needs in prediction.
        data_preprocessor: Registered data preprocessor.
        init_cfg: Initialisation.
    """

    train_cfg_keys: Mapping[str, Any] = {"rpn": "rpn_head"}
    test_cfg_keys: Mapping[str, Any] = {"rpn": "rpn_head"}

    def __init__(
        self,
        backbone: Cfg,
        neck: Cfg | None = None,
        rpn_head: Cfg | None = None,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        data_preprocessor: Cfg | None = None,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
    ) -> None:
        if rpn_head is None:
            raise ValueError("RPN: rpn_head is missing")
        for cfg, name in ((train_cfg, "train_cfg"), (test_cfg, "test_cfg")):
            check_keys(cfg, ("rpn",), name)
        super().__init__(
            backbone,
            neck,
            rpn_head,
            (train_cfg or {}).get("rpn"),
            (test_cfg or {}).get("rpn"),
            data_preprocessor,
            init_cfg,
        )
