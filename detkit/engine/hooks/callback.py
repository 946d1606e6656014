"""A function at a stage of the run, without a class of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.registry import FUNCTIONS

from detkit.engine.hooks.hook import Hook
from detkit.registry import HOOKS, nearest
from detkit.signature import quoted

__all__ = ["CallbackHook", "find_function"]

_STAGES = (*Hook.stages, "after_backward", "before_capture", "on_exception", "close")


@HOOKS.register_module()
class CallbackHook(Hook):
    """Calls functions at stages of the run; costs nothing at the others.

    A function is given the runner, and by name whichever it has parameters for of what its stage hands over:
    ``batch_idx``, ``data_batch``, ``outputs``, ``metrics``, ``checkpoint``, ``error``::

        dict(type="CallbackHook", callbacks=dict(after_val_epoch="send_me_a_mail"))

    Args:
        callbacks: Stage of a hook, such as ``after_train_iter`` or ``after_backward``, to a function or to a name
            in mmengine's registry ``FUNCTIONS``.

    Raises:
        KeyError: A stage or a function that does not exist.
        TypeError: A value that is no function.
    """

    def __init__(self, callbacks: Mapping[str, Callable[..., Any] | str]) -> None:
        for stage, function in callbacks.items():
            if stage not in _STAGES:
                raise KeyError(f"CallbackHook: no stage {stage!r}; did you mean {quoted(nearest(stage, _STAGES))}?")
            # As if a subclass had overridden the stage: the runner finds it there, and calls no other.
            setattr(self, stage, _narrowed(find_function(function, f"CallbackHook: {stage}")))


def find_function(function: Callable[..., Any] | str, source: str) -> Callable[..., Any]:
    """A function itself, or the one registered under a name.

    Args:
        function: The function, or its name in mmengine's registry ``FUNCTIONS``.
        source: Where it was asked for, for messages.

    Raises:
        KeyError: No function has that name.
        TypeError: It cannot be called.
    """
    if isinstance(function, str):
        found = FUNCTIONS.get(function)
        if found is None:
            close = quoted(nearest(function, FUNCTIONS.module_dict))
            raise KeyError(
                f"{source}: no function {function!r} is registered; did you mean {close}? Own ones are registered "
                "with @FUNCTIONS.register_module() (from mmengine.registry) in a module that custom_imports names"
            )
        function = found
    if not callable(function):
        raise TypeError(f"{source}: a function or its registered name expected, got {function!r}")
    return function


def _narrowed(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, called with those of a stage's arguments that it has parameters for."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return function
    names = {parameter.name for parameter in parameters}

    def call(runner: Any, **given: Any) -> None:
        function(runner, **{name: value for name, value in given.items() if name in names})

    return call
