"""Many objects and many priors are assigned in little memory."""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
torch.set_num_threads(1)
from detkit.structures.ground_truth import GroundTruth
from detkit.task_modules import {name}, AnchorGenerator

sizes = [(100, 180), (50, 90), (25, 45), (13, 23), (7, 12)]
generator = AnchorGenerator([8, 16, 32, 64, 128], [0.5, 1.0, 2.0], octave_base_scale=4, scales_per_octave=3)
levels = generator.grid_priors(sizes)
priors = torch.cat(levels)
draw = torch.Generator().manual_seed(0)
corner = torch.rand(1, {count}, 2, generator=draw) * torch.tensor([1400.0, 780.0])
boxes = torch.cat([corner, corner + 4 + torch.rand(1, {count}, 2, generator=draw) * 60], dim=2)
nothing = torch.zeros(1, 0, 4)
truth = GroundTruth(boxes, torch.zeros(1, {count}, dtype=torch.int64), boxes[..., 0] >= 0, nothing, nothing[..., 0] > 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assigner = {name}({arguments})
result = assigner.assign_batch(priors, truth{inputs})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(priors), int((result.gt_inds > 0).sum()), (after - before) // 1024)
"""

CASES = {
    "MaxIoUAssigner": (1000, "0.5, 0.4, min_pos_iou=0", ""),
    "ATSSAssigner": (1000, "9", ", num_level_priors=[len(level) for level in levels]"),
    "TaskAlignedAssigner": (1000, "13", ", bboxes=priors[None], scores=torch.rand(1, len(priors), 1, generator=draw)"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_thousands_of_objects(name):
    """1,000 objects x 216,072 priors are 0.86 GB as one matrix; pieces need far less."""
    count, arguments, inputs = CASES[name]
    code = MEASURE.format(name=name, count=count, arguments=arguments, inputs=inputs)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_priors, positives, mebibytes = map(int, run.stdout.split())
    assert num_priors == 216_072
    assert positives > count * 2 // 3
    assert mebibytes < 256
