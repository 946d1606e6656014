"""RoIAlign and RoIPool: cells worked by hand, the maximum of samples, precision, errors."""

import pytest
import torch
import torchvision

from detkit.ops import RoIAlign, RoIPool, SimpleRoIAlign, point_sample, roi_align, roi_pool
from detkit.ops.roi_align_cpu import align_rows, fits


def ramp(height=8, width=8):
    """A map whose value is its column plus ten times its row."""
    rows, columns = torch.arange(height), torch.arange(width)
    return (rows[:, None] * 10.0 + columns)[None, None]


def roi(*box):
    return torch.tensor([[0.0, *box]])


def test_cells_of_a_ramp_have_the_value_at_their_centres():
    # Cells of two pixels from (1, 2) on; pixel (0, 0) has its centre at (0.5, 0.5).
    got = roi_align(ramp(), roi(1, 2, 5, 6), 2, sampling_ratio=2)
    expected = torch.tensor([[2 - 0.5 + 10 * (3 - 0.5), 4 - 0.5 + 25.0], [2 - 0.5 + 45.0, 4 - 0.5 + 45.0]])
    torch.testing.assert_close(got[0, 0], expected)


def test_without_alignment_there_is_no_half_pixel():
    aligned, plain = (roi_align(ramp(), roi(1, 2, 5, 6), 2, sampling_ratio=2, aligned=a) for a in (True, False))
    torch.testing.assert_close(plain, aligned + 0.5 + 5.0)


def test_the_scale_takes_boxes_to_the_map():
    torch.testing.assert_close(
        roi_align(ramp(), roi(4, 8, 20, 24), 2, spatial_scale=0.25), roi_align(ramp(), roi(1, 2, 5, 6), 2)
    )


def test_adaptive_sampling_takes_as_many_samples_as_there_are_pixels():
    box = roi(0.5, 1.5, 6.5, 7.5)
    torch.testing.assert_close(
        roi_align(ramp(9, 9) ** 2, box, 2, sampling_ratio=0), roi_align(ramp(9, 9) ** 2, box, 2, sampling_ratio=3)
    )


def test_the_largest_sample_of_a_cell():
    got = roi_align(ramp(), roi(1, 2, 5, 6), 2, sampling_ratio=2, pool_mode="max")
    mean = roi_align(ramp(), roi(1, 2, 5, 6), 2, sampling_ratio=2)
    # Two samples along each side lie half a pixel from the centre: the last is the largest of a ramp.
    torch.testing.assert_close(got, mean + 0.5 + 5.0)


def test_pooling_takes_the_largest_pixel():
    got = roi_pool(ramp(), roi(0, 0, 3, 3), 2)
    assert got[0, 0].tolist() == [[11.0, 13.0], [31.0, 33.0]]


def test_half_precision_keeps_the_place_of_a_box():
    maps, box = ramp(4, 2000), roi(1501.0, 0.0, 1503.0, 2.0)
    exact = roi_align(maps, box, 1)
    got = roi_align(maps.bfloat16(), box, 1)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=8e-3, atol=0)
    # In bfloat16 the box itself would have been rounded to 1504.
    assert not torch.allclose(roi_align(maps, box.bfloat16().float(), 1), exact)


@pytest.mark.parametrize("layer", [RoIAlign(3, 0.5, 2), RoIAlign((2, 3), 0.5), RoIPool(3, 0.5)])
def test_layers_take_nothing_and_give_gradients(layer):
    maps = torch.rand(2, 4, 8, 8, requires_grad=True)
    assert layer(maps, torch.zeros(0, 5)).shape == (0, 4, *layer.output_size)
    layer(maps, torch.tensor([[0, 0, 0, 8, 8], [1, 2, 2, 9, 9.0]])).sum().backward()
    assert maps.grad.abs().sum() > 0


def regions(count=60):
    """Of all sizes, over the border, without area and inside out."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(count, 2, generator=generator) * 100 - 20
    size = torch.rand(count, 2, generator=generator) ** 3 * 120
    size[:2], size[2] = 0, -5
    image = torch.randint(0, 2, (count, 1), generator=generator).float()
    return torch.cat([image, corner, corner + size], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(2, 3), (7, 7)])
def test_sums_of_rows_are_torchvisions(size, ratio, aligned):
    torch.manual_seed(0)
    results = []
    for pool in (align_rows, lambda *args: torchvision.ops.roi_align(*args[:4], args[4] or -1, args[5])):
        maps = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = pool(maps, regions(), size, 0.25, ratio, aligned)
        grad = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum(), maps)[0]
        results.append((out.detach(), grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_too_many_terms_or_too_few_channels_go_to_torchvision(monkeypatch):
    maps, box = torch.rand(1, 32, 400, 400), torch.tensor([[0.0, 0, 0, 400, 400]])
    assert fits(box, (2, 2), 1.0, 0, True, 32)
    assert not fits(box, (2, 2), 1.0, 0, True, 1)
    expected = roi_align(maps, box, 2)
    monkeypatch.setattr("detkit.ops.roi_align_cpu.MOST_TERMS", 1000)
    assert not fits(box, (2, 2), 1.0, 0, True, 32)
    assert fits(box, (2, 2), 1.0, 2, True, 32)
    torch.testing.assert_close(roi_align(maps, box, 2), expected)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="pool_mode 'mean' is not one of 'avg', 'max'"):
        RoIAlign(7, pool_mode="mean")
    with pytest.raises(ValueError, match="'max' needs a sampling_ratio"):
        RoIAlign(7, pool_mode="max")


def test_simple_roi_align_samples_the_centre_of_each_cell():
    maps = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    # The last hangs over the maps on all sides.
    boxes = torch.tensor([[1.0, 4, 6, 20, 30], [0, 0, 0, 28, 36], [1, -9, -9, 40, 50]])
    got = SimpleRoIAlign((2, 3), spatial_scale=0.25)(maps, boxes)
    x, y = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2, indexing="xy")
    cells = torch.stack([x, y], dim=2).view(1, 6, 2)
    pixels = cells * (boxes[:, None, 3:] - boxes[:, None, 1:3]) + boxes[:, None, 1:3]
    for one, box, at in zip(got, boxes, pixels, strict=True):
        expected = point_sample(maps[int(box[0])][None], (at / torch.tensor([28.0, 36.0]))[None])
        torch.testing.assert_close(one.flatten(1), expected[0])
    with pytest.raises(ValueError, match="aligned must be True"):
        SimpleRoIAlign(2, aligned=False)
