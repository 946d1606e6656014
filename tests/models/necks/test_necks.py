"""Necks: initial weights, swapping, and what is refused; their features are in ``test_features.py``."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from detkit.config import load
from detkit.models.necks import BFP, HRFPN, PAFPN, ChannelMapper, CTResNetNeck, DilatedEncoder, SSDNeck, YOLOV3Neck
from detkit.registry import MODELS

CONFIGS = Path(__file__).parents[3] / "configs"


def test_transposed_convolutions_start_as_bilinear_interpolation():
    neck = CTResNetNeck(4, (2, 3), (4, 4), use_dcn=False)
    neck.init_weights()
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    weight = neck.deconv_layers[3].conv.weight
    torch.testing.assert_close(weight[:, 0], (kernel[:, None] * kernel).expand(3, 4, 4))
    assert weight[:, 1].std() > 0.01


def test_dilated_encoder_starts_with_small_blocks():
    neck = DilatedEncoder(16, 16, 8, 2, [2, 4])
    neck.init_weights()
    assert neck.dilated_encoder_blocks[1].conv2.conv.weight.std().item() == pytest.approx(0.01, rel=0.15)
    assert neck.dilated_encoder_blocks[1].conv2.conv.dilation == (4, 4)


def test_ssd_neck_starts_at_its_scale():
    neck = SSDNeck((4, 6), (4, 6, 8), (2,), (1,), l2_norm_scale=7)
    neck.init_weights()
    assert neck.l2_norm.weight.tolist() == [7.0] * 4


def test_bfp_adds_the_mean_of_all_levels():
    # Windows' largest values come down, repeated pixels go up: (4 + 2) / 2 = 3 for the coarse level and for each of
    # the fine one.
    fine, coarse = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), 2.0)
    outs = BFP(1, 2, refine_level=1)([fine, coarse])
    torch.testing.assert_close(outs[0], fine + 3)
    torch.testing.assert_close(outs[1], coarse + 3)


@pytest.mark.parametrize("neck", ["PAFPN", "FPN"])
def test_retinanet_takes_another_neck(neck):
    cfg = load(CONFIGS / "retinanet/retinanet_r50_fpn_1x_coco.py")
    assert isinstance(cfg, Config)
    cfg.model.neck.type = neck
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
        scores, _ = model(torch.zeros(1, 3, 128, 128))
    assert type(model.neck).__name__ == neck
    assert len(scores) == 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: YOLOV3Neck(3, [8, 4], [4, 2]), "num_scales=3 needs as many in_channels and out_channels"),
        (lambda: SSDNeck((4, 6), (4, 8, 6), (2,), (1,)), r"out_channels must begin with in_channels \[4, 6\]"),
        (lambda: SSDNeck((4,), (4, 8), (2, 2), (1,)), "1 further levels need as many level_strides"),
        (lambda: DilatedEncoder(4, 4, 2, 2, [2]), "num_residual_blocks=2 needs as many block_dilations"),
        (lambda: CTResNetNeck(4, (4, 4), (4,)), r"num_deconv_filters \(4, 4\) need as many num_deconv_kernels"),
        (lambda: HRFPN([4, 8], 4, pooling_type="max"), "pooling_type must be one of AVG, MAX, got 'max'"),
        (lambda: ChannelMapper([4, 8], 4, num_outs=1), "num_outs=1 is less than the 2 in_channels"),
        (lambda: ChannelMapper([4], 4, kernel_size=2), "kernel_size must be odd, got 2"),
        (lambda: BFP(4, 3, refine_level=3), r"refine_level must lie in \[0, 3\), got 3"),
        (lambda: BFP(4, 3, refine_type="attention"), "refine_type must be 'conv', 'non_local' or None"),
        (lambda: PAFPN([4, 8], 4, num_outs=1), "num_outs=1 does not fit the 2 levels"),
        (lambda: ChannelMapper([4, 8], 4)([torch.zeros(1, 4, 2, 2)]), "1 feature maps for 2 in_channels"),
        (lambda: HRFPN([4, 8], 4)([torch.zeros(1, 4, 2, 2)]), "1 feature maps for 2 in_channels"),
        (lambda: BFP(4, 2)([torch.zeros(1, 4, 2, 2)]), "refine_level must lie in"),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
