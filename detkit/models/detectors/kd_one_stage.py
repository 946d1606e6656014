"""A detector of one stage that learns from a trained one, as in Zheng et al., https://arxiv.org/abs/2102.12252."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.checkpoints import load_weights, open_checkpoint
from detkit.config import load
from detkit.models.detectors.single_stage import SingleStageDetector
from detkit.registry import MODELS
from detkit.structures import DetDataSample

__all__ = ["KnowledgeDistillationSingleStageDetector"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class KnowledgeDistillationSingleStageDetector(SingleStageDetector):
    """A student, whose head's ``loss`` is also given what the head of a teacher says of the same images.

    The teacher is no part of the student: its weights do not learn and are in no checkpoint. They are read when the
    student is first set to train.

    Args:
        backbone: Registered backbone.
        neck: Registered neck; None has none.
        bbox_head: Registered dense head that learns from a teacher.
        teacher_config: Config of the teacher: its file, ``detkit::…`` or ``mmdet::…``, or a dict with its ``model``.
            What is no file and begins with ``configs/`` is one of MMDetection's or ours.
        teacher_ckpt: Weights of the teacher: a file, or what has a scheme. None leaves them random.
        eval_teacher: The teacher's norms do not follow the batches.
        train_cfg: What the head needs in training.
        test_cfg: What the head needs in prediction.
        data_preprocessor: Registered data preprocessor, of both.
    """

    def __init__(
        self,
        backbone: Cfg,
        neck: Cfg | None,
        bbox_head: Cfg,
        teacher_config: Cfg | str | Path,
        teacher_ckpt: str | None = None,
        eval_teacher: bool = True,
        train_cfg: Cfg | None = None,
        test_cfg: Cfg | None = None,
        data_preprocessor: Cfg | None = None,
    ) -> None:
        super().__init__(backbone, neck, bbox_head, train_cfg, test_cfg, data_preprocessor)
        self.teacher_ckpt = teacher_ckpt
        self.eval_teacher = eval_teacher
        teacher = MODELS.build(_model_of(teacher_config)).requires_grad_(False)
        # Past nn.Module's own: as a part of this module it would be saved and wrapped with it.
        object.__setattr__(self, "teacher_model", teacher)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Named losses of images (N, 3, H, W)."""
        teacher: Any = self.teacher_model
        with torch.no_grad():
            out_teacher = teacher.bbox_head(teacher.extract_feat(batch_inputs))
        return self.bbox_head.loss(self.extract_feat(batch_inputs), out_teacher, batch_data_samples)

    def train(self, mode: bool = True) -> KnowledgeDistillationSingleStageDetector:
        """Set the mode; the first time to training, read the teacher's weights."""
        teacher: Any = self.teacher_model
        if mode and self.teacher_ckpt is not None:
            load_weights(teacher, open_checkpoint(self.teacher_ckpt), strict=True, name=self.teacher_ckpt)
            self.teacher_ckpt = None
        teacher.train(mode and not self.eval_teacher)
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        """Moves the teacher along to another device or type."""
        teacher: Any = self.teacher_model
        teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _model_of(config: Cfg | str | Path) -> Any:
    if not isinstance(config, Mapping):
        name = str(config)
        if name.startswith("configs/") and not Path(name).is_file():  # of a checkout of MMDetection
            name = f"mmdet::{name.removeprefix('configs/')}"
        config = load(name, checked=False)
    if "model" not in config:
        raise KeyError(f"teacher_config: the key 'model' is missing in {list(config)}")
    return config["model"]
