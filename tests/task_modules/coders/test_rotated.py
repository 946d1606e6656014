"""The coder of rotated boxes: by hand, round trips in every form, ranges of angles, batches, no waiting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import NoSync

from detkit.registry import TASK_UTILS
from detkit.task_modules import DeltaXYWHTRBBoxCoder, TBLRBBoxCoder

# Detectron2's, with its weights 10, 10, 5, 5 and 1.
DETECTRON2 = {"target_stds": (0.1, 0.1, 0.2, 0.2, 1.0), "angle_version": "r360", "degrees": True}


def rotated(count, seed, turn):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    return rows * torch.tensor([50, 50, 40, 40, turn]) + torch.tensor([0, 0, 4, 4, -turn / 2])


def test_by_hand():
    """From (10, 20), 4 x 2, at 0 to (12, 21), 8 x 2, turned by a right angle."""
    prior, gt = torch.tensor([[10.0, 20, 4, 2, 0]]), torch.tensor([[12.0, 21, 8, 2, math.pi / 2]])
    coder = DeltaXYWHTRBBoxCoder()
    torch.testing.assert_close(coder.encode(prior, gt), torch.tensor([[0.5, 0.5, math.log(2), 0, math.pi / 2]]))
    half_turns = DeltaXYWHTRBBoxCoder(norm_factor=1.0).encode(prior, gt)
    torch.testing.assert_close(half_turns[:, 4], torch.tensor([0.5]))
    # Across a prior that stands on end, the move of (2, 1) is one of (1, -2).
    turned = torch.tensor([[10.0, 20, 4, 2, math.pi / 2]])
    along = DeltaXYWHTRBBoxCoder(proj_xy=True).encode(turned, gt)
    torch.testing.assert_close(along[:, :2], torch.tensor([[0.25, -1.0]]))
    # With its sides swapped the object needs no turn at all.
    swapped = DeltaXYWHTRBBoxCoder(edge_swap=True, angle_version="le90").encode(prior, gt)
    torch.testing.assert_close(swapped[:, 2:], torch.tensor([[math.log(0.5), math.log(4), 0]]), atol=1e-6, rtol=0)


def test_detectron2_weights_and_degrees():
    prior, gt = torch.tensor([[10.0, 20, 4, 2, 170]]), torch.tensor([[10.0, 20, 4, 2, -170]])
    # From 170 to -170 degrees it is 20 further, not 340 back.
    delta = DeltaXYWHTRBBoxCoder(**DETECTRON2).encode(prior, gt)
    torch.testing.assert_close(delta, torch.tensor([[0, 0, 0, 0, math.radians(20)]]))
    torch.testing.assert_close(DeltaXYWHTRBBoxCoder(**DETECTRON2).decode(prior, delta), gt, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_detectron2_round_trip(seed):
    """In float32: boxes to 1e-5 of their size, angles modulo a full turn to 1e-4 degrees."""
    priors, gt = (rotated(20, 2 * seed + i, 360).float() for i in (0, 1))
    coder = DeltaXYWHTRBBoxCoder(**DETECTRON2)
    decoded = coder.decode(priors, coder.encode(priors, gt))
    torch.testing.assert_close(decoded[:, :4], gt[:, :4], rtol=1e-5, atol=1e-5)
    turn = (decoded[:, 4] - gt[:, 4] + 180) % 360 - 180
    torch.testing.assert_close(turn, torch.zeros(20), rtol=0, atol=1e-4)


FORMS = {
    "detectron2": (DETECTRON2, 360.0),
    "plain": ({}, 2 * math.pi),
    "le90": ({"angle_version": "le90", "norm_factor": 2, "proj_xy": True}, math.pi),
    "means": ({"target_means": (0.1, 0.2, -0.1, 0.3, 0.5), "target_stds": (0.1, 0.2, 0.3, 0.4, 0.5)}, 2 * math.pi),
    "degrees": ({"degrees": True, "norm_factor": 0.5, "proj_xy": True, "angle_version": "r360"}, 360.0),
}


@pytest.mark.parametrize(("options", "turn"), FORMS.values(), ids=FORMS.keys())
@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_decode_undoes_encode(options, turn, seed):
    priors, gt = rotated(3, seed, turn), rotated(3, seed + 1, turn)
    coder = DeltaXYWHTRBBoxCoder(**options)
    torch.testing.assert_close(coder.decode(priors, coder.encode(priors, gt)), gt, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("version", "low", "period"), [("le135", -45, 180), ("le90", -90, 180), ("r360", -180, 360)])
def test_ranges_of_angles(version, low, period):
    coder = DeltaXYWHTRBBoxCoder(angle_version=version, degrees=True)
    priors = torch.zeros(9, 5, dtype=torch.float64) + torch.tensor([0, 0, 8, 4, 0])
    gt = priors.clone()
    gt[:, 4] = torch.linspace(-720, 720, 9)
    decoded = coder.decode(priors, coder.encode(priors, gt))
    assert (decoded[:, 4] >= low - 1e-6).all()
    assert (decoded[:, 4] <= low + period + 1e-6).all()
    off = (decoded[:, 4] - gt[:, 4]) / period
    torch.testing.assert_close(off, off.round())


def test_swapped_sides_are_the_same_box():
    """A decoded box is as wide as high at least, and has the corners of the encoded one."""
    coder = DeltaXYWHTRBBoxCoder(edge_swap=True, angle_version="le90", proj_xy=True)
    priors, gt = rotated(50, 0, math.pi), rotated(50, 1, math.pi)
    decoded = coder.decode(priors, coder.encode(priors, gt))
    assert (decoded[:, 2] >= decoded[:, 3]).all()
    # Outer products of the axes by their lengths do not depend on which side is called the width.
    torch.testing.assert_close(spread(decoded), spread(gt), rtol=1e-6, atol=1e-6)
    assert (coder.encode(priors, gt)[:, 4].abs() <= math.pi / 4 + 1e-9).all()


def spread(boxes):
    x, y, w, h, angle = boxes.unbind(-1)
    axes = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2))
    shape = axes @ torch.diag_embed(torch.stack([w, h], dim=-1) ** 2) @ axes.mT
    return torch.cat([torch.stack([x, y], dim=-1), shape.flatten(1)], dim=1)


def test_limits_of_decoding():
    prior = torch.tensor([[10.0, 10, 4, 4, 0]])
    far = torch.tensor([[100.0, -100, 50, -50, 0]])
    limited = DeltaXYWHTRBBoxCoder(add_ctr_clamp=True, ctr_clamp=5).decode(prior, far)
    torch.testing.assert_close(limited[:, :3], torch.tensor([[15.0, 5, 4 / 0.016]]))
    # Centres stay on pixels of the image.
    inside = DeltaXYWHTRBBoxCoder().decode(prior, far, max_shape=(30, 40))
    torch.testing.assert_close(inside, torch.tensor([[39.0, 0, 4 / 0.016, 4 * 0.016, 0]]))


def test_batches_classes_gradients_and_no_waiting():
    coder = TASK_UTILS.build({"type": "DeltaXYWHTRBBoxCoder", **DETECTRON2})
    priors, gt = rotated(6, 0, 300), rotated(6, 1, 300)
    flat = coder.encode(priors, gt)
    assert torch.equal(coder.encode(priors.view(2, 3, 5), gt.view(2, 3, 5)), flat.view(2, 3, 5))
    classes = torch.cat([flat, 2 * flat], dim=-1)
    decoded = coder.decode(priors, classes)
    assert torch.equal(decoded[:, 5:], coder.decode(priors, 2 * flat))
    assert torch.equal(coder.decode(priors, classes.expand(2, 6, 10))[1], decoded)
    assert coder.decode(priors[:0], classes[:0]).shape == (0, 10)
    assert coder.encode(priors.half(), gt.half()).dtype == torch.float32
    for options, _ in FORMS.values():
        made = DeltaXYWHTRBBoxCoder(**options)
        assert torch.autograd.gradcheck(
            lambda code, made=made: made.decode(priors, code), (flat.clone().requires_grad_(),)
        )
        with NoSync():
            made.decode(priors, made.encode(priors, gt), max_shape=(30, 40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"angle_version": "le130"}, "angle_version 'le130' is not one of 'oc' or 'le135' or .*did you mean 'le135'"),
        ({"target_stds": (1, 1, 1, 1)}, "DeltaXYWHTRBBoxCoder: target_stds needs 5 numbers, got"),
        ({"target_stds": (1, 1, 1, 1, 0)}, "target_stds must be above 0"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeltaXYWHTRBBoxCoder(**options)


def test_boxes_of_four_numbers_are_refused():
    coder = DeltaXYWHTRBBoxCoder()
    with pytest.raises(ValueError, match=r"encode: priors \(..., N, 5\) and boxes \(..., N, 5\) were expected"):
        coder.encode(torch.zeros(2, 5), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"decode: .* predictions \(..., N, C \* 5\) were expected, got .*\(2, 8\)"):
        coder.decode(torch.zeros(2, 5), torch.zeros(2, 8))


@pytest.mark.parametrize("seed", range(3))
def test_linear_offsets_are_distances_in_sizes_of_the_prior(seed):
    """Detectron2's linear coder, which divides by the prior's size, is TBLRBBoxCoder with a normalizer of 1."""
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, 20, 2, generator=generator) * 50, torch.rand(2, 20, 2, generator=generator) * 40 + 4
    priors, gt = torch.cat([corner, corner + size], dim=-1)
    coder = TBLRBBoxCoder(normalizer=1.0)
    code = coder.encode(priors, gt)
    torch.testing.assert_close(coder.decode(priors, code), gt, rtol=0, atol=1e-3)
    center, extent = (priors[:, :2] + priors[:, 2:]) / 2, priors[:, 2:] - priors[:, :2]
    torch.testing.assert_close(code[:, [2, 0]], (center - gt[:, :2]) / extent)
    torch.testing.assert_close(code[:, [3, 1]], (gt[:, 2:] - center) / extent)
