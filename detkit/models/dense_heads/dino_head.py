"""Head of DINO, Zhang et al., https://arxiv.org/abs/2203.03605."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from detkit.models.dense_heads.deformable_detr_head import DeformableDETRHead
from detkit.models.dense_heads.losses.query_loss import matched_losses, query_losses
from detkit.models.dense_heads.targets.query_targets import denoising_targets
from detkit.registry import MODELS
from detkit.structures import DetDataSample
from detkit.structures.ground_truth import GroundTruth

__all__ = ["DINOHead"]


@MODELS.register_module()
class DINOHead(DeformableDETRHead):
    """Deformable DETR's head whose first queries are objects with noise, which learn their own object.

    The encoder's proposals learn classes. Arguments as :class:`DeformableDETRHead`.
    """

    def loss(  # type: ignore[override]  # MMDetection's order of arguments
        self,
        hidden_states: Tensor,
        references: Sequence[Tensor],
        enc_outputs_class: Tensor | None,
        enc_outputs_coord: Tensor | None,
        batch_data_samples: Sequence[DetDataSample],
        dn_meta: Mapping[str, int] | None,
    ) -> dict[str, Tensor]:
        """Losses as :meth:`DeformableDETRHead.loss`, and ``dn_loss_cls``, ``d0.dn_loss_cls`` ... of denoising queries.

        Args:
            hidden_states: Queries (L, N, Q, embed_dims) of each decoder layer, those of denoising first.
            references: See :meth:`forward`.
            enc_outputs_class: Logits (N, P, C) of the encoder's P proposals.
            enc_outputs_coord: Boxes (N, P, 4) of these, centre and size in shares of the image.
            batch_data_samples: With ``gt_instances`` and the image fact ``img_shape``.
            dn_meta: ``num_denoising_queries`` and ``num_denoising_groups``; None is no such query.

        Raises:
            ValueError: Inputs that do not fit each other, or groups that do not hold the objects twice.
        """
        logits, boxes = self(hidden_states, references)
        truth = GroundTruth.from_samples(batch_data_samples)
        keys = ("num_denoising_queries", "num_denoising_groups")
        count, groups = (0, 0) if dn_meta is None else (dn_meta.get(key, -1) for key in keys)
        if not 0 <= count < logits.shape[2] or groups < 0:
            raise ValueError(
                f"DINOHead: dn_meta must have {' and '.join(keys)}, and leave some of the {logits.shape[2]} queries to "
                f"be matched; got {dn_meta}"
            )
        metas = [sample.metainfo for sample in batch_data_samples]
        losses = matched_losses(self, logits[:, :, count:], boxes[:, :, count:], truth, metas)
        losses |= self.proposal_losses(enc_outputs_class, enc_outputs_coord, truth, metas)
        if dn_meta is not None:
            targets = denoising_targets(truth, metas, len(logits), count, groups, self.num_classes)
            losses |= query_losses(self, logits[:, :, :count], boxes[:, :, :count], targets, metas, "dn_")
        return losses
