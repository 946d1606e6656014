"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models), an optional dependency.

Name, arguments and the prefix ``timm_model.`` of its weights are those of MMPretrain's adapter.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor

from detkit.checkpoints import open_checkpoint
from detkit.models.layers.freezing import hold_statistics
from detkit.registry import MODELS, nearest

__all__ = ["TIMMBackbone"]

Cfg = Mapping[str, Any]


@MODELS.register_module()
class TIMMBackbone(BaseModule):
    """Feature maps of a network that timm has.

    Args:
        model_name: As ``timm.list_models()`` has it, with or without the tag of its weights: ``resnet50.a1_in1k``.
        features_only: Must be True: a detector needs the maps of several stages.
        pretrained: Start from timm's weights, which it downloads.
        checkpoint_path: Start from the weights of this classifier instead: a file or what has a scheme, see
            :func:`detkit.checkpoints.open_checkpoint`.
        in_channels: Channels of the image.
        init_cfg: Initialisation; not together with ``pretrained`` or ``checkpoint_path``.
        out_indices: Which of the network's maps are returned, by resolution; None is all. The first of a
            convolutional network has mostly a stride of 2, which detectors leave out: (1, 2, 3, 4).
        norm_eval: Keep batch statistics fixed in training.
        output_stride: 8, 16 or 32: dilate instead of striding below it, where the network can.
        drop_path_rate: Share of residual branches that training leaves out, in [0, 1).
        img_size: (H, W) or a side, for networks whose weights depend on it.
        model_args: Further arguments of the network's own.

    Attributes:
        out_channels: Channels of each map, for ``neck.in_channels``.
        strides: Stride of each map.
    """

    model_args_keys = None

    def __init__(
        self,
        model_name: str,
        features_only: bool = True,
        pretrained: bool = False,
        checkpoint_path: str = "",
        in_channels: int = 3,
        init_cfg: Cfg | Sequence[Cfg] | None = None,
        out_indices: Sequence[int] | None = None,
        norm_eval: bool = False,
        output_stride: int | None = None,
        drop_path_rate: float | None = None,
        img_size: int | tuple[int, int] | None = None,
        model_args: Cfg | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not features_only:
            raise ValueError("TIMMBackbone: features_only must be True: a detector needs maps of several stages")
        if init_cfg and (pretrained or checkpoint_path):
            raise ValueError("TIMMBackbone: give init_cfg, or pretrained or checkpoint_path, not both")
        options: dict[str, Any] = {
            "out_indices": None if out_indices is None else tuple(out_indices),
            "output_stride": output_stride,
            "drop_path_rate": drop_path_rate,
            "img_size": img_size,
        }
        arguments = {name: value for name, value in options.items() if value is not None} | dict(model_args or {})
        if checkpoint_path:
            # timm fits a classifier's names to the network; detkit reads the file, so that no code in it runs.
            arguments["pretrained_cfg_overlay"] = {"state_dict": open_checkpoint(checkpoint_path)["state_dict"]}
        self.norm_eval = norm_eval
        self.is_loaded = bool(pretrained or checkpoint_path)
        self.timm_model = _create(model_name, pretrained=self.is_loaded, in_chans=in_channels, **arguments)
        self.out_channels: list[int] = self.timm_model.feature_info.channels()
        self.strides: list[int] = self.timm_model.feature_info.reduction()
        # Swin and its like have channels last.
        output_format = getattr(self.timm_model, "output_fmt", "NCHW")
        self.channels_last = getattr(output_format, "value", output_format) == "NHWC"

    def init_weights(self) -> None:
        """As ``init_cfg`` says; weights that were loaded stay."""
        if not self.is_loaded:
            super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps (N, C_i, H / s_i, W / s_i) of images (N, C, H, W)."""
        features = self.timm_model(x)
        return tuple(f.permute(0, 3, 1, 2).contiguous() if self.channels_last else f for f in features)

    def train(self, mode: bool = True) -> TIMMBackbone:
        """Training mode, in which (with ``norm_eval``) batch statistics stay as they are."""
        super().train(mode)
        if self.norm_eval:
            hold_statistics(self)
        return self


def _create(model_name: str, **arguments: Any) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ImportError(f"TIMMBackbone {model_name!r} needs timm, which is not here: pip install timm") from error
    is_elsewhere = ":" in model_name  # hf-hub:..., local-dir:...
    if not is_elsewhere and not timm.is_model(model_name):
        name = model_name.partition(".")[0]
        close = ", ".join(nearest(name, timm.list_models(), count=3))
        raise ValueError(f"TIMMBackbone: timm {timm.__version__} has no {model_name!r}; the nearest names are {close}")
    try:
        return timm.create_model(model_name, features_only=True, **arguments)
    except (RuntimeError, TypeError, AssertionError) as error:  # an unknown tag or argument, a network without stages
        raise ValueError(f"TIMMBackbone: timm cannot build {model_name!r}: {error}") from error
