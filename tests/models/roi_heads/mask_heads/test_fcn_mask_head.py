"""FCNMaskHead: its options, its checks, its loss over processes."""

import pytest
import torch
from mask_scenes import positives_of, scene
from torch import distributed, nn

from detkit.models import FCNMaskHead
from detkit.models.layers.predictors import NormedConv2d
from detkit.models.roi_heads.mask_heads.mask_loss import mean_over_processes
from detkit.models.roi_heads.train_cfg import RoITrainCfg


def head_of(**options):
    return FCNMaskHead(num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3, **options)


def train_cfg(mask_size):
    return RoITrainCfg.of({"mask_size": mask_size}, None)


@pytest.mark.parametrize(
    ("upsample_cfg", "size"),
    [
        (None, 10),
        ({"type": "deconv", "scale_factor": 2}, 10),
        ({"type": "nearest", "scale_factor": 3}, 15),
        ({"type": "bilinear", "scale_factor": 2}, 10),
        ({"type": None}, 5),
    ],
)
def test_upsampling(upsample_cfg, size):
    assert head_of(upsample_cfg=upsample_cfg)(torch.rand(2, 4, 5, 5)).shape == (2, 3, size, size)


def test_one_mask_for_all_classes_and_a_normalised_last_layer():
    head = head_of(class_agnostic=True, predictor_cfg={"type": "NormedConv2d", "tempearture": 20})
    assert isinstance(head.conv_logits, NormedConv2d)
    assert head(torch.rand(2, 4, 5, 5)).shape == (2, 1, 10, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsample_cfg": {"type": "carafe", "scale_factor": 2}}, r"upsample_cfg.type 'carafe' is not one of 'deconv'"),
        ({"upsample_cfg": {"type": "deconv"}}, r"upsample_cfg.scale_factor is missing"),
        ({"init_cfg": {"type": "Normal"}}, r"init_cfg must be None"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        head_of(**options)


def test_an_unknown_key_of_the_upsampling_is_refused():
    with pytest.raises(KeyError, match="did you mean 'scale_factor'"):
        head_of(upsample_cfg={"type": "deconv", "scale_facter": 2})


def test_a_mask_size_that_is_not_predicted_is_refused():
    positives, _, bitmaps = scene([(30, 30)])
    with pytest.raises(ValueError, match=r"mask_size \(28, 28\) must be what the mask head predicts, \(10, 10\)"):
        head_of().loss_and_target(torch.rand(12, 3, 10, 10), positives, bitmaps, train_cfg(28))


def test_upsampling_and_last_layer_are_initialised_as_the_paper_says():
    head = FCNMaskHead(num_convs=0, in_channels=32, conv_out_channels=48)
    head.init_weights()
    assert isinstance(head.upsample, nn.ConvTranspose2d)
    # Kaiming: the variance is 2 over what leaves a channel, 4 pixels of each of 32 channels, and 80 classes.
    for layer, fan_out in ((head.upsample, 4 * 32), (head.conv_logits, 80)):
        assert (layer.bias == 0).all()
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_only_the_mask_of_its_own_class_learns(class_agnostic):
    positives, _, bitmaps = scene([(30, 30)])
    positives = positives._replace(labels=torch.full((12,), 1))
    logits = torch.zeros(12, 1 if class_agnostic else 3, 10, 10, requires_grad=True)
    found = head_of(class_agnostic=class_agnostic).loss_and_target(logits, positives, bitmaps, train_cfg(10))
    found["loss_mask"]["loss_mask"].sum().backward()
    learns = logits.grad.abs().sum(dim=(0, 2, 3)) > 0
    assert learns.tolist() == ([True] if class_agnostic else [False, True, False])
    # The gradient of cross entropy at 0 is 1/2 - target.
    own = logits.grad[:, 0 if class_agnostic else 1]
    torch.testing.assert_close(own, (0.5 - found["mask_targets"]) / own.numel())


def test_without_objects_the_loss_is_zero_and_reaches_every_parameter():
    head = head_of()
    positives = positives_of([[], []], [[], []])
    bitmaps = scene([(20, 20), (20, 20)])[2]
    found = head.loss_and_target(head(torch.zeros(0, 4, 5, 5)), positives, bitmaps, train_cfg(10))
    loss = found["loss_mask"]["loss_mask"].sum()
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in head.parameters())


def test_an_object_weighs_the_same_in_every_process(monkeypatch):
    """Two processes, one of 1 and one of 3 objects: DDP's mean of both is the mean over all 4."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    of_objects = torch.tensor([1.0, 2.0, 3.0, 6.0])
    losses = []
    for own, count, other in ((of_objects[:1], 1, 3), (of_objects[1:], 3, 1)):
        monkeypatch.setattr(distributed, "all_reduce", lambda value, other=other: value.add_(other / 2))
        losses.append(mean_over_processes(own.mean(), count))
    assert torch.stack(losses).mean() == of_objects.mean()
