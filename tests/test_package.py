"""What an installation promises: pure Python, cheap to import, everything importable."""

import importlib
import pkgutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import detkit

ROOT = Path(__file__).parents[1]


def test_importing_the_package_costs_nothing():
    """At most 0.1 s over bare Python, the best of three."""

    def seconds(code: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds("import detkit") - seconds("pass") < 0.1


def test_every_module_imports():
    names = [module.name for module in pkgutil.walk_packages(detkit.__path__, "detkit.")]
    assert len(names) > 80
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_the_wheel_is_pure_python(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "detkit/models/dense_heads/retina_head.py" in names
    assert {Path(n).suffix for n in names if n.startswith("detkit/")} <= {".py"}
    assert "License-Expression: Apache-2.0" in metadata
    requirements = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert any("mmcv-lite" in line for line in requirements)
    assert not any("<" in line or "==" in line for line in requirements)
