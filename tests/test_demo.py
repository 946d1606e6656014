"""The demo itself, twice: it learns, in time, and the same seed gives the same result. ``make test-slow``."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "configs/retinanet/retinanet_r18_fpn_shapes.py"


@pytest.mark.slow
def test_the_demo_learns_and_repeats_itself(tmp_path):
    aps, seconds = [], []
    for name in ("first", "second"):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "tools/train.py", CONFIG, "--device", "cpu", "--work-dir", tmp_path / name],
            cwd=ROOT,
            check=True,
        )
        seconds.append(time.perf_counter() - start)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        aps.append([line["coco/bbox_mAP"] for line in lines if "coco/bbox_mAP" in line])
        assert len(list((tmp_path / name / "predictions").glob("*.png"))) == 16
        assert (tmp_path / name / "loss.png").is_file()
        assert (tmp_path / name / "ap.png").is_file()
    print(f"bbox mAP {aps[0]}, {seconds[0]:.0f} and {seconds[1]:.0f} s")
    assert aps[0] == aps[1]
    assert aps[0][-1] >= 0.50
    assert max(seconds) < 360
