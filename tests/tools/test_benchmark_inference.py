"""tools/benchmark.py infer: both models find objects, and wrong arguments are one line."""

from run_here import run_here


def test_a_prediction_is_timed_and_both_models_find_objects():
    done = run_here("benchmark", "infer", "--only", "fcos", "--batch", "1", "--size", "64", "64", "--runs", "1")
    assert done.returncode == 0, done.stderr
    cells = next(line for line in done.stdout.splitlines() if line.startswith("| fcos")).split("|")
    assert float(cells[2]) > 0
    assert float(cells[3]) > 0
    assert all(int(count) > 5 for count in cells[7].split(","))


def test_wrong_arguments():
    done = run_here("benchmark", "infer", "--runs", "0")
    assert done.returncode == 2
    assert "--batch, --size, --runs and --threads must be at least 1" in done.stderr
    assert "Traceback" not in done.stderr
