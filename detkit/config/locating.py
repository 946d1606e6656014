"""Where a config file lies that a path or a base names."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path

from detkit.signature import nearest

__all__ = ["SUFFIXES", "locate", "mmdetection_folders"]

SUFFIXES = (".py", ".json", ".yaml", ".yml")
MMDET_CONFIGS = "DETKIT_MMDET_CONFIGS"


def locate(path: str | Path, relative_to: Path | None = None) -> Path:
    """The config file that ``path`` names.

    Args:
        path: A file, or ``detkit::retinanet/…`` for one of the configs that detkit ships, or ``mmdet::…`` for one of
            MMDetection's: from the folder that the environment variable DETKIT_MMDET_CONFIGS names, else from an
            installed mmdet, else detkit's config of that name.
        relative_to: The config that names it as a base; its folder is where relative paths begin.

    Raises:
        FileNotFoundError: With the nearest config there is.
    """
    text = str(path)
    scope, separator, inside = text.partition("::")
    if separator and scope not in ("detkit", "mmdet"):
        raise ValueError(
            f"{text!r}: only configs of detkit and of MMDetection can be named by package, as detkit::{inside}; "
            f"give another one's by its path"
        )
    if separator:
        folders = (*(mmdetection_folders() if scope == "mmdet" else ()), *_shipped_folders())
        found = next((folder / inside for folder in folders if (folder / inside).is_file()), None)
        candidate = found or folders[0] / inside if folders else Path(inside)
    else:
        candidate = Path(text).expanduser()
        if relative_to is not None:
            candidate = relative_to.parent / candidate
        found = candidate if candidate.is_file() else None
    if found is None:
        named_by = f" (a base of {relative_to})" if relative_to else ""
        searched = _searched_for_mmdetection() if scope == "mmdet" and separator else ""
        nearest_one = _nearest_config(candidate, relative_to)
        raise FileNotFoundError(f"no config file {text!r}{named_by}{searched}{nearest_one}")
    if found.suffix not in SUFFIXES:
        raise ValueError(f"{found}: a config is a file of {', '.join(SUFFIXES)}, got {found.suffix or 'no suffix'!r}")
    return Path(os.path.abspath(found))


def mmdetection_folders() -> tuple[Path, ...]:
    """Where MMDetection's own configs lie: the folder of DETKIT_MMDET_CONFIGS, and an installed mmdet's.

    Raises:
        FileNotFoundError: The variable names no folder.
    """
    folders = []
    named = os.environ.get(MMDET_CONFIGS)
    if named:
        if not Path(named).expanduser().is_dir():
            raise FileNotFoundError(f"the environment variable {MMDET_CONFIGS} names no folder: {named!r}")
        folders.append(Path(named).expanduser())
    spec = importlib.util.find_spec("mmdet")  # does not import it
    for place in (spec.submodule_search_locations or ()) if spec else ():
        beside = Path(place).parent / "configs"  # of a checkout
        folders += [folder for folder in (Path(place, ".mim/configs"), beside) if (folder / "_base_").is_dir()]
    return tuple(folders)


def _searched_for_mmdetection() -> str:
    folders = mmdetection_folders()
    if folders:
        return f" in {' or '.join(str(folder) for folder in folders)}"
    return (
        f": no mmdet is installed here, and detkit ships no config of that name; let the environment variable "
        f"{MMDET_CONFIGS} name a folder of MMDetection's configs"
    )


@functools.cache
def _shipped_folders() -> tuple[Path, ...]:
    """Where detkit's own configs lie: in the checkout, or inside the installed package."""
    package = Path(__file__).resolve().parent.parent
    return tuple(folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir())


def _nearest_config(candidate: Path, relative_to: Path | None) -> str:
    folders = {candidate.parent, *([relative_to.parent] if relative_to else [])}
    files = [file for folder in folders for file in folder.glob("*") if file.suffix in SUFFIXES and file != relative_to]
    files += [file for folder in _shipped_folders() for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}")]
    by_name = {file.name: file for file in reversed(files)}
    close = nearest(candidate.name, by_name)
    if not close:
        return ""
    best = by_name[close[0]]
    inside = best.is_relative_to(Path.cwd())
    return f"; did you mean {str(best.relative_to(Path.cwd()) if inside else best)!r}?"
