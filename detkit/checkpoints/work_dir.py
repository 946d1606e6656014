"""Which checkpoint of a work directory a run goes on from."""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from detkit.checkpoints.files import save_checkpoint_file
from detkit.checkpoints.formats import load_checkpoint_file, peek

__all__ = ["newest_intact", "publish", "put_aside", "resume_candidates"]


def resume_candidates(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints of a work directory in the order in which resuming should try them.

    The one that ``last_checkpoint`` names comes first, then those with fewer iterations, the latest first; later ones
    belong to an earlier run in the same folder. Without that file, or without the one that it names, all of them.
    The iterations are read from the files where names cannot tell, as with ``epoch_3.pth`` beside ``iter_100.pth``.
    Files that cannot be read count as later ones do, but come before the older ones, so that the reader says so.

    Args:
        folder: Searched for ``.pth`` files; the best ones (``best_*``) and published ones are no candidates.
    """
    folder = Path(folder)
    pointer = folder / "last_checkpoint"
    # mmengine wrote absolute paths there, which break when the folder moves: only the name counts.
    last = folder / Path(_text(pointer)).name if pointer.is_file() else None
    paths = [path for path in folder.glob("*.pth") if path.is_file() and not path.name.startswith(("best_", "."))]
    order = _by_name(paths) or _by_content(paths, last)
    latest_first = sorted(order, key=lambda path: (-order[path], path.name))
    if last not in order:
        return latest_first
    before = [path for path in latest_first if order[path] < order[last] or order[path] == math.inf]
    return [last, *(path for path in before if path != last)]


def _text(pointer: Path) -> str:
    """What it says; of a damaged one, something that names no file."""
    return pointer.read_text(encoding="utf-8", errors="replace").replace("\0", "?").strip()


def _by_name(paths: list[Path]) -> dict[Path, float] | None:
    """Number in the name of each; None where names do not number all of them in the same way."""
    numbered: dict[Path, float] = {}
    stems = set()
    for path in paths:
        match = re.fullmatch(r"(.*?)(\d+)\.pth", path.name)
        if _is_published(path):
            continue
        if match is None:
            return None
        stems.add(match[1])
        numbered[path] = int(match[2])
    return numbered if len(stems) == 1 else None


def _is_published(path: Path) -> bool:
    return re.search(r"-[0-9a-f]{8}\.pth$", path.name) is not None


def _by_content(paths: list[Path], last: Path | None) -> dict[Path, float]:
    """Iterations done according to each; infinity for what cannot be read."""
    order: dict[Path, float] = {}
    for path in paths:
        content = peek(path)
        meta = (content or {}).get("meta")
        if content is None:
            order[path] = math.inf
        elif path == last or "optimizer" in content:
            done = meta.get("iter") if isinstance(meta, Mapping) else None
            order[path] = done if isinstance(done, int) else math.inf
    return order


def newest_intact(
    folder: str | os.PathLike[str], check: Callable[[dict[str, Any], str], None], warn: Callable[[str], Any]
) -> tuple[dict[str, Any], str] | None:
    """Read the checkpoint from which a run goes on; one that is damaged falls back to the one before it.

    Args:
        folder: The work directory.
        check: Gets a content and its path, and raises a ValueError if a run cannot go on from it.
        warn: Is told of everything that was passed over.

    Returns:
        Content and path, or None where there is nothing to go on from.
    """
    pointer = Path(folder, "last_checkpoint")
    if pointer.is_file() and not Path(folder, Path(_text(pointer) or "?").name).is_file():
        warn(f"{pointer} names {_text(pointer)!r}, which is not there; taking the newest that is")
    for path in resume_candidates(folder):
        try:
            content = load_checkpoint_file(path)
            check(content, str(path))
        except (ValueError, FileNotFoundError) as error:
            warn(f"{error}; trying the one before it")
        else:
            return content, str(path)
    return None


def put_aside(folder: str | os.PathLike[str]) -> Path | None:
    """Move an earlier run's checkpoints to ``previous_<time>``, where <time> is that of its last one.

    Returns:
        Where they are now; None if ``folder`` has no ``last_checkpoint``.
    """
    pointer = Path(folder, "last_checkpoint")
    if not pointer.exists():
        return None
    written = time.strftime("%Y%m%d_%H%M%S", time.localtime(pointer.stat().st_mtime))
    names = chain([f"previous_{written}"], (f"previous_{written}_{number}" for number in count(1)))
    aside = next(path for path in map(pointer.with_name, names) if not path.exists())
    aside.mkdir()
    # The pointer goes last: a run killed in between leaves it, and the next one moves the rest.
    for path in [*sorted(pointer.parent.glob("*.pth")), pointer]:
        path.rename(aside / path.name)
    return aside


def publish(path: str | os.PathLike[str], keys: Sequence[str]) -> Path:
    """Write parts of a checkpoint to a file that others can use, ``<name>-<start of its SHA-256>.pth`` beside it.

    Args:
        path: The checkpoint.
        keys: Which parts.

    Raises:
        KeyError: The checkpoint has no such part.
    """
    path = Path(path)
    content = load_checkpoint_file(path)
    missing = [key for key in keys if key not in content]
    if missing:
        raise KeyError(f"{path}: published_keys names {', '.join(missing)}; it has {', '.join(content)}")
    partial = path.with_name(f".{path.stem}.published.0.tmp")  # swept up if this process is killed
    save_checkpoint_file({key: content[key] for key in keys}, partial)
    digest = hashlib.sha256()
    with open(partial, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    published = path.with_name(f"{path.stem}-{digest.hexdigest()[:8]}.pth")
    os.replace(partial, published)
    return published
