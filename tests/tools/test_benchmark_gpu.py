"""tools/benchmark_gpu.py where there is no GPU: it runs, and numbers of a GPU are refused."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "--size", "64", "64", "--batch", "1", "--steps", "1", "--warmup", "1", "--backend", "eager"]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("tools_benchmark_gpu", ROOT / "tools" / "benchmark_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield module
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch._dynamo.reset()


def test_a_table_is_printed(tool, capsys):
    before = torch.get_float32_matmul_precision()
    config = str(ROOT / "configs/retinanet/retinanet_r18_fpn_shapes.py")
    names = ["fp32", "bf16+channels_last+compile"]
    tool.benchmark(tool.parse_args([*SMALL, "--config", config, "--only", *names]))
    rows = [line.strip("| ").split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == names
    for _, per_second, milliseconds, memory, waits in rows:
        assert float(per_second) == pytest.approx(1e3 / float(milliseconds), rel=0.1)
        assert memory.strip() == waits.strip() == "not measured"
    assert torch.get_float32_matmul_precision() == before


def test_a_step_of_two_stages_is_timed(tool, capsys):
    config = str(ROOT / "configs/faster_rcnn/faster-rcnn_r18_fpn_shapes.py")
    tool.benchmark(tool.parse_args([*SMALL, "--config", config, "--only", "fp32"]))
    assert "| fp32 |" in capsys.readouterr().out


def test_the_cases_differ_in_what_they_say(tool):
    args = tool.parse_args([*SMALL, "--config", str(ROOT / "configs/retinanet/retinanet_r18_fpn_shapes.py")])
    steps = {name: tool.make_step(case, args, torch.device("cpu")) for name, case in tool.CASES.items()}
    wrappers = {name: step.__closure__ for name, step in steps.items()}
    for name, cells in wrappers.items():
        found = {type(cell.cell_contents).__name__: cell.cell_contents for cell in cells}
        assert ("AmpOptimWrapper" in found) is ("bf16" in name)
        model = found["RetinaNet"]
        weight = model.backbone.layer1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is ("channels_last" in name)
        assert (model.neck._compiled_call_impl is not None) is ("compile" in name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is about its absence")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "gpu", "--steps", "3"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / "benchmark.py"), run_name="__main__")
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert "device 'cuda' was asked for" in err
    assert "--device cpu runs without it" in err
    assert "images/s" not in out


def test_wrong_arguments(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["--steps", "0"])
    assert "must be at least 1" in capsys.readouterr().err
