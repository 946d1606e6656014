"""Suppression of many groups on a GPU: what goes by rows keeps what the kernel keeps."""

from __future__ import annotations

import pytest
import torch
from ops.test_nms import random_boxes

from detkit.ops.nms import CUDA_CALL, HardNMS, _keep_of_groups

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_groups", [1, 7, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [False, True], ids=["plain", "autocast"])
def test_many_boxes(num_groups, dtype, low):
    boxes, scores, _ = (part.cuda() for part in random_boxes(4 * CUDA_CALL, size=2000.0))
    groups = torch.arange(len(boxes), device="cuda") % num_groups
    boxes = boxes.to(dtype)
    expected = _keep_of_groups(boxes, scores, groups, 0.5)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=low):
        found, keep = HardNMS(0.5)(boxes, scores, groups)
    assert torch.equal(keep, expected)
    assert torch.equal(found, scores[expected])
