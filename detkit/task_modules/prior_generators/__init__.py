"""Prior generators: the boxes or points that predictions start from."""

from detkit.task_modules.prior_generators.anchor_generator import AnchorGenerator

__all__ = ["AnchorGenerator"]
