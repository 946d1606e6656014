"""Configs: load with inheritance and overrides, check against what the run reads, print and read back."""

from detkit.config.checking import check
from detkit.config.document import Config
from detkit.config.loading import examine, load, loads
from detkit.config.printing import dump
from detkit.config.problems import ConfigProblems, Problem

__all__ = ["Config", "ConfigProblems", "Problem", "check", "dump", "examine", "load", "loads"]
