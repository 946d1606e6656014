"""What the processes of a run have to say since the last line, as one."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Report", "combined"]

_SLOWEST = {"data_time", "memory"}  # of these the largest of all processes counts, not the mean


class Report(NamedTuple):
    """What one process has to say of one scalar since the last line."""

    total: float
    number: int
    step: int | None  # of a scalar that is not smoothed, and is reported at its own step
    shown: float  # in the terminal


def combined(gathered: list[dict[str, Report]], done: int) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """What all processes say together.

    Args:
        gathered: The reports of each process; one may lack names that others have.
        done: Step of what is smoothed.

    Returns:
        Values by step, and those for the terminal.
    """
    names = dict.fromkeys(name for reports in gathered for name in reports)
    lines: dict[int, dict[str, float]] = {}
    shown = {}
    for name in names:
        reports = [reports[name] for reports in gathered if name in reports]
        if name in _SLOWEST:
            value = max(report.total / report.number for report in reports)
            shown[name] = max(report.shown for report in reports)
        else:
            value = sum(report.total for report in reports) / sum(report.number for report in reports)
            shown[name] = sum(report.shown for report in reports) / len(reports)
        steps = [done if report.step is None else report.step for report in reports]
        lines.setdefault(max(steps), {})[name] = value
    return lines, shown
