"""tools/benchmark.py two-stage: a line for each model, whatever is timed, and wrong arguments."""

import pytest
from run_here import run_here


@pytest.mark.parametrize("what", ["step", "targets", "infer"])
def test_both_models_are_timed(what, monkeypatch, capsys):
    monkeypatch.syspath_prepend("tools")
    import benchmark_two_stage

    small = ["--batch", "1", "--size", "64", "64", "--objects", "2", "--runs", "1", "--warmup", "0"]
    model = "mask-rcnn" if what == "targets" else "faster-rcnn"
    benchmark_two_stage.main(["--what", what, "--only", model, *small])
    lines = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    (cells,) = lines[1:]
    name, yardstick, own, ratio = (cell.strip() for cell in cells)
    assert name == model
    assert float(yardstick) > 0
    assert float(own) > 0
    assert float(ratio) == pytest.approx(float(own) / float(yardstick), rel=0.1, abs=0.05)


def test_wrong_arguments():
    for arguments, message in ((["--runs", "0"], "must be at least 1"), (["--size", "100", "64"], "multiples of 32")):
        done = run_here("benchmark", "two-stage", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
