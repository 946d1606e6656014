"""Which checkpoint a run goes on from."""

from __future__ import annotations

from typing import Any

from detkit.checkpoints import from_rank0, load_checkpoint_file, newest_intact
from detkit.engine.hooks.checkpoint import checkpoint_folder
from detkit.engine.resuming.state import check_resumable

__all__ = ["checkpoint_to_resume"]


def checkpoint_to_resume(runner: Any) -> tuple[dict[str, Any], str] | None:
    """The checkpoint that ``resume`` asks for, and its file; the seed of the run becomes that of the checkpoint.

    Args:
        runner: The run; with ``resume=True`` the newest intact checkpoint of its folder is taken.

    Returns:
        None if nothing is to be resumed, or where there is no checkpoint yet.

    Raises:
        ValueError: A file was named that cannot be resumed from.
    """
    if not runner._resume:
        return None
    if not isinstance(runner._resume, bool):
        path = str(runner._resume)
        checkpoint = load_checkpoint_file(path, broadcast_from_rank0=True)
        check_resumable(checkpoint, path)
        found: tuple[dict[str, Any], str] | None = (checkpoint, path)
    else:
        folder = checkpoint_folder(runner)
        # One process looks: on several machines, the others may see other files, or none.
        found = from_rank0(lambda: newest_intact(folder, check_resumable, runner.logger.warning))
    if found is None:
        start = f"the weights of {runner._load_from}" if runner._load_from else "scratch"
        runner.logger.warning("no checkpoint to resume from in %s: starting from %s", runner.work_dir, start)
        return None
    seed = found[0]["meta"].get("seed")  # mmengine's may have none
    if seed is not None and seed != runner.seed:
        runner.logger.warning("the run was started with seed %s, and goes on with it, not with %s", seed, runner.seed)
        runner._seed = seed
    return found
