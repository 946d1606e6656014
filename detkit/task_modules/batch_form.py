"""Which form of a task module counts, the one for a batch or the one for a single image."""

from __future__ import annotations

from typing import Any

__all__ = ["takes_batches"]


def takes_batches(module: Any, per_image: str, *batched: str) -> bool:
    """Whether to call a module's batched form.

    Whoever overrides only the per-image method of a built-in means it to be called, though the batched one is
    inherited: the method that is defined nearer to the module's own class counts, the batched one of two in one class.

    Args:
        module: Any task module.
        per_image: Name of its method for one image.
        batched: Names of its methods for a batch, that which is called first, then what that is made of.
    """
    for names in (getattr(module, "__dict__", {}), *(cls.__dict__ for cls in type(module).__mro__)):
        if any(name in names for name in batched):
            return True
        if per_image in names:
            return False
    # Neither is in a class: a wrapper that hands attributes on has what it wraps has.
    return hasattr(module, batched[0])
