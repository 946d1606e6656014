"""docs/optimization.md: every snippet builds, and every rule is in its table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from detkit.config import load
from detkit.engine.optim.param_rules import RULE_KEYS
from detkit.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS

PAGE = (Path(__file__).parents[3] / "docs/optimization.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"layer1": nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(1, 1, 1)})])})
        self.neck = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_builds(snippet):
    config: dict[str, Any] = {}
    exec(snippet, config)
    for hook in config.get("custom_hooks", []):
        HOOKS.build(hook)
    if "optim_wrapper" in config:
        options = config["optim_wrapper"]
        kind = options.pop("constructor", "DefaultOptimWrapperConstructor")
        rules = options.pop("paramwise_cfg")
        build = OPTIM_WRAPPER_CONSTRUCTORS.build({"type": kind, "optim_wrapper_cfg": options, "paramwise_cfg": rules})
        assert len(build(Net()).optimizer.param_groups) > 1


def test_the_table_has_every_rule():
    named = {name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)", line)}
    assert named >= RULE_KEYS - {"bypass_duplicate"}
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("rule", sorted(RULE_KEYS))
def test_a_config_may_have_every_rule(rule, tmp_path):
    path = tmp_path / "rules.py"
    path.write_text(f"optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1), paramwise_cfg={{{rule!r}: {{}}}})")
    assert rule in load(path).optim_wrapper.paramwise_cfg
