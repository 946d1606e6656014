"""Checkpoint files: written so that a kill leaves a whole one, read without running what they contain.

Below the models, so that ``init_cfg`` and the engine use one reader.
"""

from detkit.checkpoints.broadcast import from_rank0
from detkit.checkpoints.files import save_checkpoint_file, to_plain, write_text
from detkit.checkpoints.formats import load_checkpoint_file, peek
from detkit.checkpoints.loading import load_weights
from detkit.checkpoints.origins import class_names
from detkit.checkpoints.report import LoadReport
from detkit.checkpoints.schemes import open_checkpoint, register_scheme
from detkit.checkpoints.work_dir import newest_intact, resume_candidates

__all__ = [
    "LoadReport",
    "class_names",
    "from_rank0",
    "load_checkpoint_file",
    "load_weights",
    "newest_intact",
    "open_checkpoint",
    "peek",
    "register_scheme",
    "resume_candidates",
    "save_checkpoint_file",
    "to_plain",
    "write_text",
]
