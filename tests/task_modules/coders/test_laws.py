"""Laws that all box coders keep: round trip, batches, gradients, precision, tracing, clear refusals."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import NoSync
from reference import assert_same

from detkit.structures.boxes import HorizontalBoxes
from detkit.task_modules.coders import (
    BucketingBBoxCoder,
    DeltaXYWHBBoxCoder,
    DeltaXYWHBBoxCoderForGLIP,
    DistancePointBBoxCoder,
    LegacyDeltaXYWHBBoxCoder,
    PseudoBBoxCoder,
    TBLRBBoxCoder,
    YOLOBBoxCoder,
)

STRIDE = 16


def boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 50
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40], dim=1)


def same_cell(priors, gt):
    """The boxes with their centres moved into the cells of the priors."""
    to_cell = (priors[..., :2] + priors[..., 2:] - gt[..., :2] - gt[..., 2:]) / 2
    aside = (gt[..., :2] % 1 - 0.5) * (STRIDE - 0.1)
    return gt + (to_cell + aside).repeat_interleave(2, dim=-1)[..., [0, 2, 1, 3]]


@dataclass
class Kind:
    """A coder and how it is used: what it encodes from, what it can encode, and what it gives back."""

    build: Callable[[], Any]
    prior: Callable[[torch.Tensor], torch.Tensor] = lambda priors: priors
    domain: Callable[..., torch.Tensor] = lambda priors, gt: gt
    arguments: dict[str, Any] = field(default_factory=dict)
    prediction: Callable[[Any], Any] = lambda code: code
    lost: tuple[float, float, float, float] = (0, 0, 0, 0)
    clips: bool = True

    def encode(self, priors, gt):
        return self.build().encode(self.prior(priors), gt, **self.arguments)

    def decode(self, priors, code, **options):
        out = self.build().decode(self.prior(priors), self.prediction(code), **self.arguments, **options)
        return out[0] if isinstance(out, tuple) else out


STDS = {"target_means": (0.1, 0.0, -0.1, 0.0), "target_stds": (0.1, 0.1, 0.2, 0.2)}
KINDS = {
    "delta": Kind(lambda: DeltaXYWHBBoxCoder(**STDS)),
    # x2 and y2 are the last pixel afterwards
    "glip": Kind(lambda: DeltaXYWHBBoxCoderForGLIP(**STDS), lost=(0, 0, 1, 1)),
    "legacy": Kind(lambda: LegacyDeltaXYWHBBoxCoder(**STDS), lost=(0.5, 0.5, -0.5, -0.5)),
    "tblr": Kind(lambda: TBLRBBoxCoder(normalizer=(4.0, 1.0, 2.0, 3.0))),
    "yolo": Kind(YOLOBBoxCoder, domain=same_cell, arguments={"stride": STRIDE}, clips=False),
    "distance": Kind(DistancePointBBoxCoder, prior=lambda priors: priors[..., :2]),
    "pseudo": Kind(PseudoBBoxCoder),
    "bucketing": Kind(
        lambda: BucketingBBoxCoder(num_buckets=14, scale_factor=3.0),
        prediction=lambda code: (100 * code[2], code[0]),
    ),
}
every_coder = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
clipping = pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in KINDS.items() if kind.clips])

numbers = st.floats(0, 50, width=32)
sizes = st.floats(2, 60, width=32)
box_pairs = st.lists(st.tuples(*[numbers, numbers, sizes, sizes] * 2), min_size=1, max_size=6)


@every_coder
@given(pairs=box_pairs)
@settings(max_examples=30, deadline=None)
def test_decode_undoes_encode(kind, pairs):
    pair = torch.tensor(pairs, dtype=torch.float64).view(-1, 2, 4)
    pair[..., 2:] += pair[..., :2]
    priors, gt = pair.unbind(1)
    gt = kind.domain(priors, gt)
    decoded = kind.decode(priors, kind.encode(priors, gt))
    torch.testing.assert_close(decoded, gt - gt.new_tensor(kind.lost), rtol=1e-7, atol=1e-7)


@every_coder
def test_leading_dimensions_are_boxes_one_by_one(kind):
    priors = boxes(20, 0).float()
    gt = kind.domain(priors, boxes(20, 1).float())
    flat = kind.encode(priors, gt)
    nested = kind.encode(priors.view(2, 2, 5, 4), gt.view(2, 2, 5, 4))
    assert_same(_parts(nested), [part.view(2, 2, 5, -1) for part in _parts(flat)], 0, 0)
    decoded = kind.decode(priors.view(2, 2, 5, 4), nested)
    assert_same(decoded, kind.decode(priors, flat).view(2, 2, 5, 4), 0, 0)


@every_coder
def test_priors_of_all_images_broadcast(kind):
    priors = boxes(5, 0).float()
    gt = kind.domain(priors.expand(3, 5, 4), boxes(15, 1).float().view(3, 5, 4))
    code = kind.encode(priors.expand(3, 5, 4), gt)
    assert_same(_parts(kind.encode(priors, gt)), _parts(code), 0, 0)
    assert torch.equal(kind.decode(priors, code), kind.decode(priors.expand(3, 5, 4), code))


@clipping
@pytest.mark.parametrize("as_tensor", [False, True])
def test_each_image_has_its_own_border(kind, as_tensor):
    priors = boxes(10, 0).float().view(2, 5, 4)
    code = kind.encode(priors, boxes(10, 1).float().view(2, 5, 4))
    shapes = [(30, 40, 3), (60, 20, 3)]
    together = kind.decode(priors, code, max_shape=torch.tensor(shapes) if as_tensor else shapes)
    for image, shape in enumerate(shapes):
        alone = kind.decode(priors[image], _each(code, lambda part, image=image: part[image]), max_shape=shape)
        assert torch.equal(together[image], alone)
        assert together[image, :, 0::2].max() <= shape[1]
        assert together[image, :, 1::2].max() <= shape[0]
    assert (kind.decode(priors, code) > 60).any()
    with pytest.raises(ValueError, match=r"3 image shapes do not fit boxes of shape \(2, 5"):
        kind.decode(priors, code, max_shape=[(30, 40)] * 3)


@every_coder
def test_gradients_are_those_of_finite_differences(kind):
    priors = boxes(4, 0)
    gt = kind.domain(priors, boxes(4, 1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: _parts(kind.encode(priors, g))[0], (gt,))
    code = _each(kind.encode(priors, gt), lambda part: part.detach().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda *parts: kind.decode(priors, parts if len(parts) > 1 else parts[0]), tuple(_parts(code))
    )


@every_coder
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(kind, dtype):
    priors = boxes(6, 0).to(dtype)
    gt = kind.domain(priors, boxes(6, 1).to(dtype))
    full = kind.encode(priors.float(), gt.float())
    with torch.autocast("cpu", dtype):
        code = kind.encode(priors, gt)
        half = _each(full, lambda part: part.to(dtype))
        decoded = kind.decode(priors, half)
    if kind is not KINDS["pseudo"]:  # gives back what it was given
        assert {part.dtype for part in [*_parts(code), decoded]} == {torch.float32}
    assert_same(_parts(code), _parts(_each(full, lambda part: part.to(_parts(code)[0].dtype))), 0, 0)
    assert torch.equal(decoded.float(), kind.decode(priors.float(), _each(half, lambda part: part.float())))


@every_coder
def test_traces_as_a_whole_and_waits_for_nothing(kind):
    priors = boxes(6, 0).float().view(2, 3, 4)
    gt = kind.domain(priors, boxes(6, 1).float().view(2, 3, 4))
    options = {"max_shape": [(30, 40), (60, 20)]} if kind.clips else {}

    def round_trip(priors, gt):
        code = kind.encode(priors, gt)
        return code, kind.decode(priors, code, **options)

    expected_code, expected = round_trip(priors, gt)
    with NoSync():
        round_trip(priors, gt)
    torch._dynamo.reset()
    code, decoded = torch.compile(round_trip, fullgraph=True, backend="eager")(priors, gt)
    assert_same(_parts(code), _parts(expected_code), 0, 0)
    assert torch.equal(decoded, expected)


@every_coder
def test_no_boxes(kind):
    code = kind.encode(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4))
    assert all(part.shape[:2] == (2, 0) for part in _parts(code))
    assert kind.decode(torch.zeros(2, 0, 4), code).shape == (2, 0, 4)


@every_coder
def test_box_types_are_as_good_as_tensors(kind):
    priors = boxes(6, 0)
    gt = kind.domain(priors, boxes(6, 1))
    assert_same(_parts(kind.encode(priors, HorizontalBoxes(gt))), _parts(kind.encode(priors, gt)), 0, 0)


@every_coder
def test_wrong_shapes_are_refused(kind):
    assert kind.build().encode_size == 4
    if kind is KINDS["pseudo"]:  # the priors do not matter
        return
    name, prior_size = type(kind.build()).__name__, kind.prior(boxes(1, 0)).shape[-1]
    expected = rf"{name}.encode: priors \(..., N, {prior_size}\).*got \(8, {prior_size}\) and \(7, 4\)"
    with pytest.raises(ValueError, match=expected):
        kind.encode(boxes(8, 0), boxes(7, 1))
    with pytest.raises(ValueError, match=rf"got \(8, {prior_size}\) and \(8, 5\)"):
        kind.encode(boxes(8, 0), torch.zeros(8, 5))
    code = kind.encode(boxes(7, 0), boxes(7, 1))
    with pytest.raises(ValueError, match=rf"{name}.decode: priors .*got \(8, {prior_size}\) and \(7, "):
        kind.decode(boxes(8, 0), code)


def _parts(code):
    return [code] if isinstance(code, torch.Tensor) else list(code)


def _each(code, function):
    return function(code) if isinstance(code, torch.Tensor) else type(code)(*(function(part) for part in code))
