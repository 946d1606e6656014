"""tools/benchmark.py: its yardsticks agree with detkit, and its table says so."""

import pytest
from run_here import run_here


def test_a_case_is_timed_and_both_ways_agree():
    done = run_here("benchmark", "assign", "--only", "atss_100", "simota_100", "fcos_loss", "--runs", "1")
    assert done.returncode == 0, done.stderr
    rows = {line.split("|")[1].strip(): line.split("|") for line in done.stdout.splitlines() if line.count("|") > 5}
    for name in ("atss_100", "simota_100"):
        assert rows[name][6].strip() == "100.000%"
        assert float(rows[name][5]) > 1
    yardstick, ours = map(float, rows["fcos_loss"][6].split(","))
    # torchvision's matching differs at the borders of the ranges.
    assert ours == pytest.approx(yardstick, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["assign", "--only", "maxiou"], "invalid choice: 'maxiou'"),
        (["assign", "--runs", "0"], "--runs and --threads must be at least 1, got 0 and 1"),
        ([], "the following arguments are required: command"),
    ],
)
def test_wrong_arguments(arguments, message):
    done = run_here("benchmark", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
