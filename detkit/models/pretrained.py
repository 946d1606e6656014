"""``init_cfg=dict(type='Pretrained', checkpoint=...)`` with the reader and the report of every other load."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.model import weight_init
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from detkit.checkpoints import load_weights, open_checkpoint
from detkit.checkpoints.key_matching import strip_wrapper
from detkit.checkpoints.origins import with_own_names

__all__ = ["PretrainedInit"]


# mmengine's goes on without a word if not a single weight fits, and it is found also where no scope is set.
@WEIGHT_INITIALIZERS.register_module(name="Pretrained", force=True)
class PretrainedInit(weight_init.PretrainedInit):
    """Starts a module from weights.

    A module with a method ``convert_checkpoint(state) -> state`` is asked for the names and shapes it wants first.

    Args:
        checkpoint: A file or what has a scheme, such as ``torchvision://resnet50``; see
            :func:`detkit.checkpoints.open_checkpoint`.
        prefix: Take only weights whose names start with it, without it: ``backbone`` of a whole detector, also of
            torchvision or Detectron2.
        map_location: Device on which they are read.
        revise_keys: Pairs (pattern, replacement) that rename the file's weights, after ``prefix``.
        key_matching: ``exact`` or ``suffix``, see :func:`detkit.checkpoints.load_weights`.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        map_location: str = "cpu",
        revise_keys: Sequence[tuple[str, str]] = (),
        key_matching: str | None = None,
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)
        self.revise_keys = revise_keys
        self.key_matching = key_matching

    def __call__(self, module: nn.Module) -> None:
        """Load.

        Raises:
            ValueError: The file has no weight that fits, or cannot be read safely.
        """
        content = open_checkpoint(self.checkpoint, self.map_location)
        if self.prefix:
            prefix = self.prefix.removesuffix(".") + "."
            state = strip_wrapper(content["state_dict"])
            if not any(name.startswith(prefix) for name in state):  # detectors of other projects
                state = with_own_names(state, content, ())[0]
            part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            if not part:
                raise ValueError(f"{self.checkpoint}: no weight in it starts with {prefix!r}")
            content = {**content, "state_dict": part}
        convert = getattr(module, "convert_checkpoint", None)
        if convert is not None:
            content = {**content, "state_dict": convert(strip_wrapper(content["state_dict"]))}
        report = load_weights(
            module, content, revise=self.revise_keys, key_matching=self.key_matching, name=self.checkpoint
        )
        level = logging.WARNING if report.missing or report.mismatched else logging.INFO
        print_log(f"{type(module).__name__} starts from {self.checkpoint}: {report}", logger="current", level=level)
        if hasattr(module, "_params_init_info"):
            weight_init.update_init_info(module, init_info=self._get_init_info())
