"""The loaded config: mmengine's ``Config``, with a cheap and exact text form."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config as MMEngineConfig

from detkit.config.mmdetection import Change
from detkit.config.printing import dump

__all__ = ["Config"]


class Config(MMEngineConfig):
    """A config as :func:`detkit.config.load` gives it.

    Attributes:
        variables: The top-level names that are no keys of the run (``data_root``), with the values from which the
            rest was computed. They are not part of the text: what the run reads holds their values.
        origins: For each top-level key, the last file that sets it.
        changes: What a config of MMDetection's scope had changed; see :func:`detkit.config.mmdetection.translate`.
    """

    variables: dict[str, Any]
    origins: dict[str, Path]
    changes: list[Change]

    def __init__(
        self,
        cfg_dict: Mapping[str, Any] | None = None,
        cfg_text: str | None = None,
        filename: str | Path | None = None,
        env_variables: dict[str, str] | None = None,
        format_python_code: bool = False,
        variables: Collection[str] = (),
        origins: Mapping[str, Path] | None = None,
        changes: Collection[Change] = (),
    ) -> None:
        super().__init__(cfg_dict, cfg_text, filename, env_variables, format_python_code)
        self.__dict__["variables"] = copy.deepcopy({name: self[name] for name in variables})
        self.__dict__["origins"] = dict(origins or {})
        self.__dict__["changes"] = list(changes)

    @property
    def pretty_text(self) -> str:
        """Python text that :func:`detkit.config.loads` reads back."""
        return dump(self)

    def dump(self, file: str | Path | None = None) -> str | None:
        """Write the config as Python text to ``file``, or return the text."""
        if file is None:
            return self.pretty_text
        Path(file).write_text(self.pretty_text, encoding="utf-8")
        return None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
