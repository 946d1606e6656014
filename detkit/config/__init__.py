"""Configs: load with inheritance and overrides, check against what the run reads, print and read back."""

from detkit.config.checking import check
from detkit.config.document import Config
from detkit.config.loading import load, loads
from detkit.config.printing import dump

__all__ = ["Config", "check", "dump", "load", "loads"]
