"""Run lengths of windows are those that pycocotools finds in the whole image."""

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from detkit.structures.masks.run_lengths import decode_run_lengths, encode_window

SHAPE = (9, 7)


@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("window", [(0, 0, 9, 7), (2, 1, 5, 3), (4, 3, 5, 4), (0, 2, 9, 2), (3, 3, 0, 2), (3, 3, 2, 0)])
def test_a_window_is_encoded_as_its_image(window, density):
    top, left, height, width = window
    bits = np.random.RandomState(7).rand(height, width) < density
    image = np.zeros(SHAPE, dtype=np.uint8, order="F")
    image[top : top + height, left : left + width] = bits
    found = encode_window(bits, top, left, SHAPE)
    assert found == rle_tools.encode(image)
    assert np.array_equal(decode_run_lengths([found, found])[1], image.astype(bool))


def test_no_masks_are_decoded_too():
    assert decode_run_lengths([]).shape == (0, 0, 0)
