"""The configs that detkit ships, found by their place."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from detkit.config import Config, load

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = sorted(path for path in CONFIGS.glob("*/*.py") if path.parent.name != "_base_")


def name_of(path: Path) -> str:
    """As MMDetection names it: ``folder/file.py``."""
    return path.relative_to(CONFIGS).as_posix()


def parametrized(paths: list[Path]) -> Any:
    """A mark that runs a test for each of ``paths``."""
    return pytest.mark.parametrize("path", paths, ids=[name_of(path) for path in paths])


@functools.cache
def _loaded(path: Path) -> Config:
    return load(path)


def config_of(path: Path) -> Config:
    """A config, loaded and checked, that a test may change."""
    return _loaded(path).copy()
