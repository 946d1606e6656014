"""Generalised attention is mmcv's, without copies from the host."""

import pytest
import torch
from mmcv.cnn import GeneralizedAttention as MMCVGeneralizedAttention
from no_sync import NoSync
from torch._subclasses.fake_tensor import FakeTensorMode

from detkit.models.layers import GeneralizedAttention
from detkit.registry import MODELS


@pytest.mark.parametrize("attention_type", ["0100", "1111", "0010"])
def test_values_are_mmcvs(attention_type):
    arguments = {"in_channels": 16, "num_heads": 2, "attention_type": attention_type, "kv_stride": 2}
    own = MODELS.build({"type": "GeneralizedAttention", **arguments})
    assert type(own) is GeneralizedAttention
    theirs = MMCVGeneralizedAttention(**arguments)
    theirs.load_state_dict(own.state_dict())
    for layer in (own, theirs):
        torch.nn.init.ones_(layer.gamma)
    x = torch.rand(2, 16, 7, 7)
    torch.testing.assert_close(own(x), theirs(x))


@pytest.mark.parametrize("cls", [GeneralizedAttention, MMCVGeneralizedAttention])
def test_positions_are_computed_on_the_device(cls):
    layer = cls(16, num_heads=2)
    arguments = (7, 7, 4, 4, 1, 2, torch.device("cuda"), torch.float32, 8)
    with FakeTensorMode():
        if cls is GeneralizedAttention:
            with NoSync():
                layer.get_position_embedding(*arguments)
        else:
            with pytest.raises(AssertionError, match="copies from the host"), NoSync():
                layer.get_position_embedding(*arguments)
