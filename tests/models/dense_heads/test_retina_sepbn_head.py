"""RetinaNet's head with norms of each level's own."""

from __future__ import annotations

import pytest
import torch

from detkit.models.dense_heads import RetinaHead, RetinaSepBNHead

ANCHORS = {"type": "AnchorGenerator", "scales": [8], "ratios": [1.0], "strides": [8, 16]}
SMALL = {"num_classes": 2, "in_channels": 4, "feat_channels": 4, "stacked_convs": 2, "anchor_generator": ANCHORS}
NORM = {"type": "BN", "requires_grad": True}


def test_levels_share_convolutions_and_not_norms():
    torch.manual_seed(0)
    head = RetinaSepBNHead(num_ins=2, norm_cfg=NORM, **SMALL)
    head.init_weights()
    for towers in (head.cls_convs, head.reg_convs):
        for first, second in zip(*towers, strict=True):
            assert first.conv is second.conv
            assert first.bn is not second.bn
            assert first.conv.weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert head.retina_cls.bias.tolist() == pytest.approx([-4.595] * 2, abs=1e-3)
    # each level is RetinaHead's with that level's norms
    x = [torch.randn(2, 4, 8, 8), 3 * torch.randn(2, 4, 4, 4) + 1]
    scores, boxes = head(x)
    for level in range(2):
        own = RetinaHead(norm_cfg=NORM, **SMALL)
        own.cls_convs, own.reg_convs = head.cls_convs[level], head.reg_convs[level]
        own.retina_cls, own.retina_reg = head.retina_cls, head.retina_reg
        (score,), (box,) = own(x[level : level + 1])
        torch.testing.assert_close(scores[level], score)
        torch.testing.assert_close(boxes[level], box)
    head.eval()
    assert not torch.equal(head.cls_convs[0][0].bn.running_var, head.cls_convs[1][0].bn.running_var)


def test_levels_that_differ_from_the_anchors():
    with pytest.raises(ValueError, match="RetinaSepBNHead: num_ins=5, but anchor_generator has 2 levels"):
        RetinaSepBNHead(num_ins=5, **SMALL)
