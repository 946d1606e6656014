"""What stands against a config: collected as a whole, told in one message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ConfigProblems", "Problem", "refuse"]


@dataclass(frozen=True)
class Problem:
    """One thing that stands against a config.

    Attributes:
        part: What is missing or wrong, by a name that is the same in every config: ``FPG``, ``FPN(my_argument)``.
        error: What says the place, the value and the nearest right name.
    """

    part: str
    error: Exception

    @property
    def message(self) -> str:
        """One sentence for a user, that begins with the place."""
        return str(self.error.args[0]) if self.error.args else str(self.error)


class ConfigProblems(ValueError):
    """Several things stand against one config.

    Attributes:
        problems: Each of them, in the order of the config.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        self.lines = _lines(problems)
        super().__init__(f"{len(self.lines)} things stand against this config:\n  " + "\n  ".join(self.lines))

    def __reduce__(self) -> tuple[type[ConfigProblems], tuple[list[Problem]]]:
        return type(self), (self.problems,)


def refuse(problems: Sequence[Problem]) -> None:
    """Raise what stands against a config, if anything does: a single thing as its own error."""
    lines = _lines(problems)
    if len(lines) == 1 == len(problems):
        raise problems[0].error
    if problems:
        raise ConfigProblems(problems)


def _lines(problems: Sequence[Problem]) -> list[str]:
    """A line for each thing; what is said alike of several places (a validation and a test set) is said once."""
    places: dict[str, list[str]] = {}
    for problem in problems:
        place, separator, rest = problem.message.partition(": ")
        if not separator or " " in place:
            place, rest = "", problem.message
        places.setdefault(rest, [])
        if place not in places[rest]:
            places[rest].append(place)
    return [", ".join(found) + (": " if found != [""] else "") + rest for rest, found in places.items()]
