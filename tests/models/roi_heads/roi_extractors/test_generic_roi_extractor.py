"""Features from all levels: layers before and after, no regions, wrong channels."""

import pytest
import torch
from no_sync import NoSync

from detkit.models import GenericRoIExtractor
from detkit.models.roi_heads.roi_extractors.pooling import scale_rois

ALIGN = {"type": "RoIAlign", "output_size": 4, "sampling_ratio": 2}
CONV = {"type": "ConvModule", "in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 1, "inplace": False}
ATTENTION = {"type": "GeneralizedAttention", "in_channels": 8, "num_heads": 2, "attention_type": "0100", "kv_stride": 2}
LEVELS = [torch.rand(2, 8, size, size, generator=torch.Generator().manual_seed(size)) for size in (16, 8)]
ROIS = torch.tensor([[0.0, 3, 5, 30, 40], [1, 10, 10, 60, 50], [1, 0, 0, 5, 5]])


def extractor(**changes):
    torch.manual_seed(0)
    found = GenericRoIExtractor(**{"roi_layer": ALIGN, "out_channels": 8, "featmap_strides": [4, 8], **changes})
    for name, value in found.named_parameters():
        if name.endswith("gamma"):  # where it starts, attention adds nothing
            torch.nn.init.ones_(value)
    return found


def test_layers_before_are_of_each_level_and_the_one_after_of_their_sum():
    whole = extractor(pre_cfg=CONV, post_cfg=ATTENTION)
    pooled = [layer(level, ROIS) for layer, level in zip(whole.roi_layers, LEVELS, strict=True)]
    expected = whole.post_module(whole.pre_module(pooled[0]) + whole.pre_module(pooled[1]))
    with NoSync():
        found = whole(LEVELS, ROIS)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, extractor(pre_cfg=CONV)(LEVELS, ROIS))
    assert {name.split(".")[0] for name in whole.state_dict()} == {"pre_module", "post_module"}


def test_regions_grow_on_all_levels():
    plain = extractor()
    torch.testing.assert_close(plain(LEVELS, ROIS, 1.5), plain(LEVELS, scale_rois(ROIS, 1.5)))


@pytest.mark.parametrize("aggregation", ["sum", "concat"])
def test_without_regions_there_are_no_features_and_gradients_of_zero(aggregation):
    channels = {"sum": 8, "concat": 16}[aggregation]
    attention = {**ATTENTION, "in_channels": channels}
    empty = extractor(aggregation=aggregation, out_channels=channels, pre_cfg=CONV, post_cfg=attention)
    found = empty(LEVELS, ROIS[:0])
    assert found.shape == (0, channels, 4, 4)
    found.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in empty.parameters())


def test_channels_and_aggregation_are_checked():
    with pytest.raises(ValueError, match="levels give 16 channels by 'concat', out_channels is 8"):
        extractor(aggregation="concat")(LEVELS, ROIS)
    with pytest.raises(ValueError, match="aggregation 'mean' is not one of 'sum', 'concat'"):
        extractor(aggregation="mean")
