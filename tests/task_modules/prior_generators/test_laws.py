"""Laws that all prior generators keep: order, cells by number, flags, one tensor per size, no waiting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from no_sync import NoSync

from detkit.task_modules.prior_generators import (
    AnchorGenerator,
    LegacyAnchorGenerator,
    LegacySSDAnchorGenerator,
    MlvlPointGenerator,
    PointGenerator,
    SSDAnchorGenerator,
    YOLOAnchorGenerator,
)
from detkit.task_modules.prior_generators.grid import CACHE_SIZE

STRIDES = [(8, 4), (16, 16), (32, 20)]
SSD_RATIOS = [[2], [2, 3], [3]]
GENERATORS = {
    "anchor": lambda: AnchorGenerator(STRIDES, [0.5, 1.0, 2.0], octave_base_scale=4, scales_per_octave=2),
    "legacy": lambda: LegacyAnchorGenerator(STRIDES, [0.5, 1.0], [8], center_offset=0.5),
    "ssd": lambda: SSDAnchorGenerator(STRIDES, SSD_RATIOS, min_sizes=[10, 30, 60], max_sizes=[30, 60, 90]),
    "legacy_ssd": lambda: LegacySSDAnchorGenerator(STRIDES, SSD_RATIOS, (0.15, 0.3)),
    "yolo": lambda: YOLOAnchorGenerator(STRIDES, [[(10, 13), (16, 30)], [(30, 61), (62, 45)], [(90, 90), (40, 80)]]),
    "points": lambda: MlvlPointGenerator(STRIDES),
}
every_generator = pytest.mark.parametrize("build", GENERATORS.values(), ids=GENERATORS.keys())
SIZES = [(9, 13), (5, 7), (3, 4)]


@every_generator
@given(height=st.integers(1, 6), width=st.integers(1, 6), level=st.integers(0, 2), data=st.data())
@settings(max_examples=20, deadline=None)
def test_priors_by_number_are_those_of_the_grid(build, height, width, level, data):
    generator = build()
    grid = generator.single_level_grid_priors((height, width), level)
    assert len(grid) == height * width * generator.num_base_priors[level]
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(grid) - 1), min_size=1, max_size=5)))
    torch.testing.assert_close(generator.sparse_priors(index, (height, width), level), grid[index])
    assert generator.sparse_priors(index.view(1, -1), (height, width), level).shape == (1, len(index), grid.shape[1])


@every_generator
def test_neighbouring_cells_are_a_stride_apart(build):
    generator = build()
    for level, priors in enumerate(generator.grid_priors(SIZES)):
        height, width = SIZES[level]
        stride_x, stride_y = STRIDES[level]
        cells = priors.view(height, width, generator.num_base_priors[level], -1)
        right = torch.tensor([stride_x, 0.0] * (cells.shape[-1] // 2))
        below = torch.tensor([0.0, stride_y] * (cells.shape[-1] // 2))
        torch.testing.assert_close(cells[:, 1:], cells[:, :-1] + right, rtol=0, atol=1e-4)
        torch.testing.assert_close(cells[1:], cells[:-1] + below, rtol=0, atol=1e-4)


@every_generator
@given(height=st.integers(1, 120), width=st.integers(1, 120))
@settings(max_examples=20, deadline=None)
def test_valid_are_the_cells_that_begin_inside_the_image(build, height, width):
    generator = build()
    for level, flags in enumerate(generator.valid_flags(SIZES, (height, width, 3))):
        stride_x, stride_y = STRIDES[level]
        rows, columns = (torch.arange(count) for count in SIZES[level])
        inside = (rows[:, None] * stride_y < height) & (columns * stride_x < width)
        assert torch.equal(flags, inside.flatten().repeat_interleave(generator.num_base_priors[level]))


@every_generator
def test_a_grid_is_made_once_per_size_and_dtype(build):
    generator = build()
    first, again = generator.grid_priors(SIZES), generator.grid_priors(SIZES)
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert generator.grid_priors(SIZES, dtype=torch.float64)[0].dtype == torch.float64
    assert generator.grid_priors(SIZES[::-1])[0].shape != first[0].shape
    flags = generator.valid_flags(SIZES, (50, 70))
    assert all(a is b for a, b in zip(flags, generator.valid_flags(SIZES, (50, 70)), strict=True))


def test_the_cache_does_not_grow_without_end():
    generator = MlvlPointGenerator([8])
    for width in range(1, CACHE_SIZE + 10):
        generator.grid_priors([(1, width)])
    assert len(generator._cache._tensors) == CACHE_SIZE
    assert generator.grid_priors([(1, width)])[0] is generator.grid_priors([(1, width)])[0]


@every_generator
def test_training_may_use_what_inference_has_asked_for(build):
    generator = build()
    with torch.inference_mode():
        generator.grid_priors(SIZES)
    weight = torch.ones((), requires_grad=True)
    (generator.grid_priors(SIZES)[0] * weight).sum().backward()
    assert weight.grad is not None


@every_generator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_grids_are_the_rounded_full_ones(build, dtype):
    generator = build()
    for half, full in zip(generator.grid_priors(SIZES, dtype=dtype), generator.grid_priors(SIZES), strict=True):
        assert torch.equal(half, full.to(dtype))


@every_generator
def test_waits_for_nothing_and_traces_as_a_whole(build):
    expected = build().grid_priors(SIZES), build().valid_flags(SIZES, (50, 70))
    with NoSync():
        generator = build()
        for _ in range(2):
            generator.grid_priors(SIZES)
            generator.valid_flags(SIZES, (50, 70))
            generator.sparse_priors(torch.tensor([3, 1]), SIZES[0], 0)
    torch._dynamo.reset()
    generator = build()

    def priors_and_flags(x):
        return [p + x for p in generator.grid_priors(SIZES)], generator.valid_flags(SIZES, (50, 70))

    priors, flags = torch.compile(priors_and_flags, fullgraph=True, backend="eager")(torch.zeros(()))
    for got, want in ((priors, expected[0]), (flags, expected[1])):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@every_generator
def test_as_many_feature_maps_as_levels(build):
    generator = build()
    name = type(generator).__name__
    assert generator.num_levels == 3
    for call in (lambda: generator.grid_priors(SIZES[:2]), lambda: generator.valid_flags(SIZES[:2], (50, 70))):
        with pytest.raises(ValueError, match=rf"{name}: 2 feature maps for 3 strides \[\(8, 4\)"):
            call()


def test_more_cells_cannot_be_valid_than_there_are():
    with pytest.raises(ValueError, match=r"\(4, 2\) valid rows and columns are more than the feature map's \(3, 4\)"):
        PointGenerator().valid_flags((3, 4), (4, 2))
    with pytest.raises(ValueError, match=r"\(3, 5\) valid rows and columns"):
        GENERATORS["anchor"]().single_level_valid_flags((3, 4), (3, 5), 1)
    with pytest.raises(ValueError, match=r"\(3, 5\) valid rows and columns"):
        GENERATORS["points"]().single_level_valid_flags((3, 4), (3, 5))
