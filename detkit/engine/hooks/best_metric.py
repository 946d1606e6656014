"""Which of a run's validations was the best, by one metric or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from detkit.engine.evaluation.base_loop import evaluation_parts
from detkit.registry import nearest

__all__ = ["BestMetric", "rule_by_name"]

_LESS = ("loss", "error", "err")


class BestMetric:
    """Keeps the best score of each metric; a NaN or an infinity is never the best.

    Args:
        save_best: Name of a metric, several, ``auto`` for the first that is given, or None.
        rule: ``greater`` or ``less`` for all of them or one for each; None to tell by the name.
        greater_keys: Parts of names whose metrics should be great.
        less_keys: Parts of names whose metrics should be small.
        strict: Whether a missing metric is an error.

    Attributes:
        records: Metric -> ``score`` and whatever else the owner keeps of its best.

    Raises:
        ValueError: A rule that is none, or not one per metric.
    """

    def __init__(
        self,
        save_best: str | Sequence[str] | None,
        rule: str | Sequence[str] | None = None,
        greater_keys: Sequence[str] = (),
        less_keys: Sequence[str] = (),
        strict: bool = False,
    ) -> None:
        self.keys = [save_best] if isinstance(save_best, str) else list(save_best or [])
        count = max(len(self.keys), 1)
        rules = [rule] * count if isinstance(rule, str) else list(rule or [])
        if any(name not in ("greater", "less") for name in rules) or len(rules) not in (0, count):
            raise ValueError(f"CheckpointHook: rule must be 'greater' or 'less', or one per save_best, got {rule!r}")
        self._rules = dict(zip(self.keys, rules, strict=False))
        self._greater, self._less = _parts(greater_keys), _parts(less_keys)
        self._strict = strict
        self._warned: set[str] = set()
        self.records: dict[str, dict[str, Any]] = {}

    def check(self, loop: Any, warn: Callable[[str], Any]) -> None:
        """Say before training what no validation will give, as far as the prefixes of the metrics tell.

        Args:
            loop: The validation loop, or None where there is no validation.
            warn: Is told, once for each.

        Raises:
            KeyError: A metric cannot be given, if ``strict``.
        """
        if loop is None and self.keys:
            self._miss("", f"{', '.join(self.keys)} comes from validation, of which there is none", warn)
        metrics = [metric for part in evaluation_parts(loop) for metric in part.evaluator.metrics] if loop else []
        if not metrics or not all(isinstance(metric, BaseMetric) and metric.prefix for metric in metrics):
            return
        prefixes = [f"{metric.prefix}/" for metric in metrics] + ["val/"] * bool(getattr(loop, "loss", False))
        for key in self.keys:
            if key != "auto" and not any(prefix in key for prefix in prefixes):
                close = " or ".join(repr(prefix + key.rpartition("/")[2]) for prefix in prefixes)
                self._miss(key, f"no metric of val_evaluator gives {key!r}; did you mean {close}?", warn)

    def improved(self, scores: Mapping[str, float], warn: Callable[[str], Any]) -> dict[str, float]:
        """Those metrics whose score is finite and better than ever before; ``records`` stays as it is.

        Raises:
            KeyError: A metric is missing, if ``strict``; else ``warn`` is called, once for each.
        """
        keys = self.keys
        if keys == ["auto"]:
            keys = list(self.records) or list(scores)[:1]
        better = {}
        for key in keys:
            if key not in scores:
                close = " or ".join(map(repr, nearest(key, scores, count=3)))
                self._miss(key, f"the evaluator gives no {key!r}; did you mean {close}?", warn)
            elif math.isfinite(scores[key]) and self._better(key, scores[key]):
                better[key] = scores[key]
        return better

    def _miss(self, key: str, text: str, warn: Callable[[str], Any]) -> None:
        message = f"default_hooks.checkpoint.save_best: {text}"
        if self._strict:
            raise KeyError(message)
        if key not in self._warned:
            self._warned.add(key)
            warn(message)

    def _better(self, key: str, score: float) -> bool:
        if key not in self.records:
            return True
        best = self.records[key]["score"]
        return score < best if self._rule(key) == "less" else score > best

    def _rule(self, key: str) -> str:
        name = key.lower()
        if (rule := self._rules.get(key) or self._rules.get("auto")) is not None:
            return rule
        if any(part in name for part in self._less):
            return "less"
        if any(part in name for part in self._greater):
            return "greater"
        return rule_by_name(key)


def rule_by_name(metric: str) -> str:
    """``less`` for metrics that are named a loss or an error, else ``greater``."""
    return "less" if any(part in metric.lower() for part in _LESS) else "greater"


def _parts(keys: str | Sequence[str]) -> list[str]:
    return [key.lower() for key in ([keys] if isinstance(keys, str) else keys)]
