"""Generalised attention, Zhu et al., https://arxiv.org/abs/1904.05873: mmcv's layer without copies from the host."""

from __future__ import annotations

import torch
from mmcv.cnn import GeneralizedAttention as MMCVGeneralizedAttention
from torch import Tensor

from detkit.registry import MODELS

__all__ = ["GeneralizedAttention"]


@MODELS.register_module()
class GeneralizedAttention(MMCVGeneralizedAttention):
    """Attention by what is there and by where it is, as an addition to the features.

    Its positions are computed on the features' device: there, each is copied from the host, which waits.
    """

    def get_position_embedding(
        self,
        h: int,
        w: int,
        h_kv: int,
        w_kv: int,
        q_stride: int,
        kv_stride: int,
        device: torch.device,
        dtype: torch.dtype,
        feat_dim: int,
        wave_length: float = 1000,
    ) -> tuple[Tensor, Tensor]:
        """Sines and cosines (w, w_kv, feat_dim / 2) and (h, h_kv, feat_dim / 2) of how far places are apart.

        Args:
            h: Rows that ask.
            w: Columns that ask.
            h_kv: Rows that are asked.
            w_kv: Columns that are asked.
            q_stride: Pixels from one that asks to the next.
            kv_stride: Pixels from one that is asked to the next.
            device: Of the result.
            dtype: Of the result.
            feat_dim: Numbers of both together, a multiple of 4.
            wave_length: Longest wave, over two pi.
        """
        exponent = torch.arange(feat_dim // 4, device=device, dtype=torch.float32) * (4.0 / feat_dim)

        def waves(asking: int, asked: int) -> Tensor:
            own = torch.arange(asking, device=device, dtype=torch.float32) * q_stride
            other = torch.arange(asked, device=device, dtype=torch.float32) * kv_stride
            apart = (own.unsqueeze(1) - other) * self.position_magnitude
            angle = apart.unsqueeze(2) * torch.pow(wave_length, -exponent)
            return torch.cat([angle.sin(), angle.cos()], dim=2).to(dtype)

        return waves(w, w_kv), waves(h, h_kv)
