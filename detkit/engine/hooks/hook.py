"""What a hook may do: mmengine's stages, four more, and a state that checkpoints keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine import hooks as mmengine_hooks

__all__ = ["Hook", "overridden_stages"]


class Hook(mmengine_hooks.Hook):
    """Base of detkit's hooks; a hook of mmengine works beside it, without what is added here.

    A hook overrides the stages it needs. The order of a training step is ``before_train_iter``, forward,
    backward, ``after_backward``, step of the optimizer, ``after_train_iter``. What a hook overrides is found
    when it is registered; stages that it leaves alone cost nothing.
    """

    def after_backward(self, runner: Any) -> None:
        """Gradients are there, and the optimizer has not stepped yet; called once per iteration."""

    def before_capture(self, runner: Any) -> None:
        """A checkpoint is about to be made; every process is told, so that collectives are allowed."""

    def on_exception(self, runner: Any, error: BaseException) -> None:
        """The run ends with ``error``, which goes on when all hooks have been told."""

    def close(self, runner: Any) -> None:
        """The run is over, in whichever way: release files and processes."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of this hook, in plain types; an empty dict is not saved."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""


# Stages that mmengine reaches through one method for training, validation and test.
_SHARED = {f"_{when}_{what}": f"{when}_{{}}_{what}" for when in ("before", "after") for what in ("epoch", "iter")}


def overridden_stages(hook: mmengine_hooks.Hook) -> set[str]:
    """Names of all public methods that ``hook`` adds to or overrides in the bases of hooks."""
    own: set[str] = set(vars(hook))
    for cls in type(hook).__mro__:
        if cls in (Hook, mmengine_hooks.Hook, object):
            break
        # A subclass may give a stage back: ``after_train_iter = Hook.after_train_iter``.
        own.update(name for name in vars(cls) if getattr(type(hook), name) is not getattr(Hook, name, None))
    for method, stage in _SHARED.items():
        if method in own:
            own.update(stage.format(mode) for mode in ("train", "val", "test"))
    return {name for name in own if not name.startswith("_")}
