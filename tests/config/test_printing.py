"""The text of a config: read back equal, and without running it."""

from __future__ import annotations

import math

import pytest

from detkit.config import Config, dump, load, loads
from detkit.config.printing import parse

VALUES = {
    "a": 1,
    "b": [1.5, -2, True, None, "it's", b"x"],
    "c": (1,),
    "d": {"e": {}, "f": [], "g": (), 3: "three", (1, 2): 0},
    "h": {"inf": [math.inf, -math.inf], "long": ["a wide string " * 3] * 4},
    "for_": {"class": 1},
    "i": [[{"type": "A", "scale": (1333, 800)}], "{{ not filled }}"],
}


class Net:
    class Inner:
        pass


def function() -> None:
    pass


def test_round_trip():
    text = dump(VALUES)
    assert parse(text) == VALUES
    assert loads(text).to_dict() == VALUES
    assert max(map(len, text.splitlines())) <= 120
    assert dump(loads(text)) == text


def test_nan():
    assert math.isnan(parse(dump({"x": math.nan}))["x"])


def test_what_it_looks_like():
    assert dump({"model": {"type": "Net", "scale": (1, 2)}, "x": {"a-b": 1}}) == (
        "model = dict(type='Net', scale=(1, 2))\nx = {'a-b': 1}\n"
    )


def test_class_is_its_importable_path():
    assert dump({"model": {"type": Net.Inner}}) == f"model = dict(type='{__name__}.Net.Inner')\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"fn": function}, r"a\.0\.fn: .*function can only stand as the 'type' of a dict"),
        ({"type": lambda: 0}, r"a\.0\.type: .*<lambda> cannot be imported by name"),
        ({"x": object()}, r"a\.0\.x: a config holds literals and classes, got <object"),
        ({"x": {1, 2}}, r"a\.0\.x: .* of type set"),
    ],
)
def test_values_without_a_text(value, message):
    with pytest.raises(TypeError, match=message):
        dump({"a": [value]})


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "x = __import__('os').system('true')",
        "x = open('/etc/passwd')",
        "x = dict(*[1])",
        "x = dict(**{'a': 1})",
        "x = [i for i in range(3)]",
        "x = float('1.5')",
        "x = y",
        "x = 1 + 1",
        "x = f'{1}'",
        "x, y = 1, 2",
        "x.y = 1",
        "print(1)",
        "x = {**{'a': 1}}",
        "x = 'a'.upper()",
        "x = (lambda: 1)()",
    ],
)
def test_text_that_would_run(text):
    with pytest.raises(ValueError, match="config text, line 2: only"):
        loads(f"ok = 1\n{text}\n")


def test_text_that_is_broken():
    with pytest.raises(ValueError, match="config text, line 2: "):
        loads("x = 1\nx = (\n")


def test_variables_are_not_printed(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("root = 'data/'\nwork_dir = root + 'x'\n")
    cfg = load(path, checked=False)
    assert cfg.root == "data/"
    assert dump(cfg) == cfg.pretty_text == "work_dir = 'data/x'\ndefault_scope = 'detkit'\n"


def test_dump_to_a_file(tmp_path):
    cfg = Config({"work_dir": "x"})
    assert cfg.dump() == "work_dir = 'x'\n"
    cfg.dump(tmp_path / "out.py")
    assert load(tmp_path / "out.py", checked=False).work_dir == "x"
