"""tools/benchmark_engine.py, with few steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).resolve().parents[2] / "tools" / "benchmark_engine.py"


def test_the_table_has_a_row_of_times(capsys):
    spec = importlib.util.spec_from_file_location("tools_benchmark_engine", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.benchmark(module.parse_args(["--steps", "40", "--runs", "1", "--interval", "10"]))
    bare, ours, added = map(int, capsys.readouterr().out.splitlines()[-1].strip("| ").split("|"))
    assert bare > 0
    assert abs(ours - bare - added) <= 2
